"""Determine the floating-point types of a graph's weights from its products, whatever the file claims."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

import onnx

from pom_export.graph.module_names import is_inside
from pom_export.graph.opsets import STANDARD_DOMAINS
from pom_export.graph.unfolding import all_nodes, graphs_of

_PRODUCTS: Final = ("MatMul", "Gemm", "Conv", "Einsum")
# Ops that only move a weight's values, or convert their type.
_MOVES: Final = (
    "Cast",
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "Pad",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
)
_MATRIX: Final = 2
_NAMES: Final[Mapping[int, str]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.DOUBLE: "float64",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.BFLOAT16: "bfloat16",
}


def weight_types(model: onnx.ModelProto, without: Collection[str] = ()) -> dict[str, int]:
    """Return how many values the weights of a graph's products have in each type, for products that affect an output.

    Matrices in nested graphs, functions and attributes are counted too, whatever their use: no exporter puts weights
    there, so they are assumed to be weights in disguise.

    Args:
        model: the model.
        without: names of modules whose own products are not counted.
    """
    graph = model.graph
    makers = {name: node for node in all_nodes(graph) for name in node.output if name}
    matrices = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) >= _MATRIX}
    counts: Counter[str] = Counter()
    multiplied: list[str] = []
    for node in _live_nodes(graph, makers):
        if is_inside(node.name.partition("/")[0], without):
            continue
        for each in (node, *(inner for branch in graphs_of(node) for inner in all_nodes(branch))):
            if each.op_type in _PRODUCTS and each.domain in STANDARD_DOMAINS:
                multiplied += each.input
        for tensor in _tensors_inside(node):
            _count(tensor, counts)
    for name in _sources(multiplied, makers) & matrices.keys():
        _count(matrices[name], counts)
    for function in model.functions:
        for node in function.node:
            for tensor in _tensors_inside(node):
                _count(tensor, counts)
    return dict(counts)


def precision_of(counts: Mapping[str, int], otherwise: Sequence[str]) -> str:
    """Return the coarsest type such that at least half of the weights are at most as precise, or else "float32".

    Args:
        counts: the result of `weight_types`.
        otherwise: types of inputs and outputs, which decide if there are no weights; all of them must then be half
            types.

    Returns:
        "float32", "float16" or "bfloat16".
    """
    if not counts:
        counts = Counter(otherwise) if "float32" not in otherwise else {}
    total, coarse = sum(counts.values()), 0
    for precision in ("bfloat16", "float16"):
        coarse += counts.get(precision, 0)
        if total and 2 * coarse >= total:
            return precision
    return "float32"


def _count(tensor: onnx.TensorProto, counts: Counter[str]) -> None:
    if len(tensor.dims) >= _MATRIX and tensor.data_type in _NAMES:
        counts[_NAMES[tensor.data_type]] += math.prod(tensor.dims)


def _live_nodes(graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield the nodes that an output depends on, without duplicates."""
    wanted, seen = [output.name for output in graph.output], set()
    while wanted:
        node = makers.get(wanted.pop())
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        wanted += [*node.input, *_outer_names(node)]
        yield node


def _outer_names(node: onnx.NodeProto) -> Iterator[str]:
    for graph in graphs_of(node):
        yield from (output.name for output in graph.output)
        for inner in graph.node:
            yield from inner.input
            yield from _outer_names(inner)


def _sources(names: Iterable[str], makers: dict[str, onnx.NodeProto]) -> set[str]:
    """Return the values that the given ones are made from by only moving or converting numbers."""
    wanted, seen = list(names), set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        node = makers.get(name)
        if node is not None and node.op_type in _MOVES:
            wanted += node.input
    return seen


def _tensors_inside(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
    for graph in graphs_of(node):
        yield from graph.initializer
        for inner in graph.node:
            yield from _tensors_inside(inner)
