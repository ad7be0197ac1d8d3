"""The lower bound of a model's time: its matrix products in a graph of their own, and the bytes that they move."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pom_export.errors import InputError
from pom_export.graph.saving import EXTERNAL_DATA_BYTES

Sizes = Mapping[str, int]
Axes = tuple[str | int, ...]
_ITEM_BYTES = 4
_SCALE = 0.02
_OPSET, _IR_VERSION = 20, 10
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Product:
    """A matrix product with a constant weight: (..., inner) x (inner, columns).

    Attributes:
        rows: leading axes of the left side: sizes, or names of dynamic dimensions.
        inner: columns of the left side.
        columns: columns of the weight.
        from_input: whether the left side is an input of the graph, which the graph does not write.
        to_output: whether the result is an output of the graph, which the graph does not read.
    """

    rows: Axes
    inner: int
    columns: int
    from_input: bool = False
    to_output: bool = False

    def row_count(self, sizes: Sizes) -> int:
        """Return the number of rows at given sizes of the dynamic dimensions."""
        return prod(sizes[axis] if isinstance(axis, str) else axis for axis in self.rows)

    def flops(self, sizes: Sizes) -> int:
        """Return the multiplications and additions."""
        return 2 * self.row_count(sizes) * self.inner * self.columns

    def traffic_bytes(self, sizes: Sizes) -> int:
        """Return the bytes read and written: the weight and both sides, which count twice within the graph.

        The products of a layer thus also account for what its aggregation and its gate read and write.
        """
        rows = self.row_count(sizes)
        left = rows * self.inner * (1 if self.from_input else 2)
        right = rows * self.columns * (1 if self.to_output else 2)
        return _ITEM_BYTES * (left + right + self.inner * self.columns)


def find_products(model: str | os.PathLike[str], names: Iterable[str]) -> list[Product]:
    """Return the products with a constant weight in an ONNX file, except those of unknown size.

    Args:
        model: the file; external weights are not read.
        names: names of the dynamic dimensions whose size is known.
    """
    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Transpose" and len(weights.get(node.input[0], ())) == 2:
            weights[node.output[0]] = weights[node.input[0]][::-1]
    axes = {value.name: _axes(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    inputs, outputs = ({value.name for value in values} for values in (graph.input, graph.output))
    products = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS or node.domain or len(weights.get(node.input[1], ())) != 2:
            continue
        left = axes.get(node.input[0], ())
        if len(left) < 2 or any(isinstance(axis, str) and axis not in set(names) for axis in left):
            continue
        inner, columns = weights[node.input[1]]
        if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
            inner, columns = columns, inner
        products.append(Product(left[:-1], inner, columns, node.input[0] in inputs, node.output[0] in outputs))
    return products


def _axes(value: onnx.ValueInfoProto) -> Axes:
    dims = value.type.tensor_type.shape.dim
    return tuple(dim.dim_param or int(dim.dim_value) for dim in dims)


def write_floor(products: Sequence[Product], path: Path, seed: int) -> None:
    """Write a graph of only the products, each with a separate input and random weights.

    Raises:
        InputError: there are no products.
    """
    if not products:
        raise InputError("the model has no matrix product with a constant weight", "Leave matmul out")
    random_state = np.random.default_rng(seed)
    nodes, inputs, outputs, weights = [], [], [], []
    for i, product in enumerate(products):
        nodes.append(helper.make_node("MatMul", [f"left_{i}", f"weight_{i}"], [f"product_{i}"]))
        inputs.append(float_value(f"left_{i}", (*product.rows, product.inner)))
        outputs.append(float_value(f"product_{i}", (*product.rows, product.columns)))
        values = random_state.standard_normal((product.inner, product.columns), dtype=np.float32)
        weights.append(numpy_helper.from_array(_SCALE * values, f"weight_{i}"))
    save_graph(helper.make_graph(nodes, "products", inputs, outputs, weights), path)


def float_value(name: str, axes: Sequence[str | int]) -> onnx.ValueInfoProto:
    """Return the description of a float32 tensor."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(axes))


def save_graph(graph: onnx.GraphProto, path: Path, domains: Sequence[str] = ()) -> None:
    """Save a graph of standard ops and of ops of other domains, at version 1."""
    imports = [helper.make_opsetid("", _OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    large = sum(len(tensor.raw_data) for tensor in graph.initializer) > EXTERNAL_DATA_BYTES
    onnx.save_model(model, path, save_as_external_data=large, location=f"{path.name}.data")
