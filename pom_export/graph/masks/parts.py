"""Cut out the part of a graph that computes a mask, so that it can be run without data at any number of tokens.

What depends only on sizes and constants is run as it is. Where data enters as one value per key token, (..., 1, N),
such as a padding mask, the graph is cut: any values may come from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from pom_export import contract

Array = npt.NDArray[Any]
_SIZES = ("Shape", "Size")
_RANDOM = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli")
# The last two axes of a value are those of the queries and the keys.
_PAIR_RANK = 2
_BATCH = 2


class NotComputableError(Exception):
    """A mask cannot be computed without data; the text says why."""


@dataclass
class MaskPart:
    """The nodes that compute the wanted values from constants, sizes and the keys' data.

    Attributes:
        wanted: the values to compute.
        tokens: the number of context tokens, as in the graph.
        nodes: the nodes, in order.
        constants: initializers by name.
        sizes: outputs of nodes that return a shape or size, by name.
        keys: values through which data enters, (..., 1, N) or (N), by name.
    """

    wanted: tuple[ir.Value, ...]
    tokens: int | ir.SymbolicDim
    nodes: list[ir.Node] = field(default_factory=list)
    constants: dict[str, ir.Value] = field(default_factory=dict)
    sizes: dict[str, ir.Value] = field(default_factory=dict)
    keys: dict[str, ir.Value] = field(default_factory=dict)
    data: dict[ir.Value, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[ir.Value] = set()
        for value in self.wanted:
            self._collect(value, seen)
        self._evaluator: Any = None

    def depends_on_data(self, value: ir.Value) -> bool:
        """Return whether a value depends on more than constants and sizes."""
        # Not recursive, since a mask may be computed by hundreds of nodes.
        waiting = [value]
        while waiting:
            current = waiting[-1]
            node = current.producer()
            if current in self.data:
                waiting.pop()
            elif node is None:
                self.data[current] = current.const_value is None
            elif node.op_type in _SIZES:
                self.data[current] = False
            elif node.domain == contract.DOMAIN or node.op_type.startswith(_RANDOM):
                self.data[current] = True
            elif unknown := [v for v in node.inputs if v is not None and v not in self.data]:
                waiting.extend(unknown)
            else:
                self.data[current] = any(self.data[v] for v in node.inputs if v is not None)
        return self.data[value]

    def compute(self, env: Mapping[str, int], draw: Mapping[str, Array]) -> list[Array]:
        """Compute the wanted values.

        Args:
            env: sizes of the dynamic dimensions.
            draw: the values of `keys`, by name.

        Raises:
            NotComputableError: a node can't be run at this size.
        """
        feeds: dict[str, Array] = dict(draw)
        for name, value in self.sizes.items():
            feeds[name] = asked_shape(value, env)
        try:
            with np.errstate(all="ignore"):
                return list(self._session().run(None, feeds))
        except (NotComputableError, MemoryError):
            raise
        except Exception as error:
            raise NotComputableError(f"it can't be computed: {error}") from error

    def sizes_at(self, tokens: int) -> dict[str, int]:
        """Return sizes for all dynamic dimensions: `tokens` for those in the number of tokens, and 2 for the others."""
        asked = [node.inputs[0] for node in (value.producer() for value in self.sizes.values()) if node is not None]
        values = [value for value in (*asked, *self.keys.values(), *self.wanted) if value is not None]
        sizes = dict.fromkeys(_symbols(size for value in values for size in value.shape or ()), _BATCH)
        return {**sizes, **dict.fromkeys(_symbols([self.tokens]), tokens)}

    def shape_of(self, value: ir.Value, env: Mapping[str, int]) -> tuple[int, ...]:
        """Return a value's shape, given the sizes of the dynamic dimensions."""
        return tuple(size_of(dimension, env) for dimension in value.shape or ())

    def _session(self) -> Any:
        from onnx.reference import ReferenceEvaluator

        if self._evaluator is None:
            inputs = [
                onnx.helper.make_tensor_value_info(name, int(value.dtype or ir.DataType.INT64), None)
                for name, value in (*self.sizes.items(), *self.keys.items())
            ]
            outputs = [
                onnx.helper.make_tensor_value_info(value.name or "", int(value.dtype or ir.DataType.FLOAT), None)
                for value in self.wanted
            ]
            tensors = []
            for name, value in self.constants.items():
                assert value.const_value is not None
                tensors.append(onnx.numpy_helper.from_array(value.const_value.numpy(), name))
            nodes = [ir.serde.serialize_node(node) for node in self.nodes]
            graph = onnx.helper.make_graph(nodes, "mask", inputs, outputs, tensors)
            opset = self.nodes[0].graph.opset_imports.get("", 20) if self.nodes and self.nodes[0].graph else 20
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
            self._evaluator = ReferenceEvaluator(model)
        return self._evaluator

    def _collect(self, value: ir.Value, seen: set[ir.Value]) -> None:
        if value in seen:
            return
        seen.add(value)
        node, name = value.producer(), value.name or ""
        if value.const_value is not None and node is None:
            self.constants[name] = value
        elif node is not None and node.op_type in _SIZES:
            self.sizes[name] = value
        elif self.depends_on_data(value) and self._is_of_keys(value):
            self.keys[name] = value
        elif node is None or node.domain == contract.DOMAIN or node.op_type.startswith(_RANDOM):
            raise NotComputableError(self._why_data(value))
        else:
            for given in node.inputs:
                if given is not None:
                    self._collect(given, seen)
            if node not in self.nodes:
                self.nodes.append(node)

    def _is_of_keys(self, value: ir.Value) -> bool:
        shape = tuple(value.shape or ())
        if not shape or shape[-1] != self.tokens:
            return False
        return len(shape) < _PAIR_RANK or shape[-2] == 1

    def _why_data(self, value: ir.Value) -> str:
        if value.is_graph_input():
            shape = [str(size) for size in value.shape or ()]
            is_mask = len(shape) > _PAIR_RANK and shape[-1] == str(self.tokens)
            return "the mask is an input" if is_mask else f"the mask depends on {value.name} for each pair of tokens"
        return "the mask depends on what the model computes for each pair of tokens"


def size_of(dimension: int | ir.SymbolicDim, env: Mapping[str, int]) -> int:
    """Return a dimension's size.

    Raises:
        NotComputableError: it does not follow from the sizes of the dynamic dimensions.
    """
    if isinstance(dimension, int):
        return dimension
    try:
        size = dimension.evaluate(dict(env))
    except Exception as error:
        raise NotComputableError(f"its size {dimension} is not known") from error
    if not isinstance(size, int):
        raise NotComputableError(f"its size {dimension} is not known")
    return size


def _symbols(dimensions: Iterable[int | ir.SymbolicDim]) -> set[str]:
    return {name for size in dimensions if not isinstance(size, int) for name in size.free_symbols()}


def asked_shape(value: ir.Value, env: Mapping[str, int]) -> Array:
    """Compute the result of a node that returns a shape or the number of elements."""
    node = value.producer()
    assert node is not None
    asked = node.inputs[0]
    if asked is None or asked.shape is None:
        raise NotComputableError("a shape is not known")
    start, end = node.attributes.get("start"), node.attributes.get("end")
    part = list(asked.shape)[slice(start.as_int() if start else 0, end.as_int() if end else None)]
    shape = np.array([size_of(size, env) for size in part], np.int64)
    return np.array(shape.prod(), np.int64) if node.op_type == "Size" else shape
