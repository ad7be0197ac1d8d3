"""Run a part of a graph on arrays, in float64 whatever the graph's type.

Recognition compares numbers instead of node types: however a formula is written, it has the same values. In float64,
two formulas that only differ by rounding agree to twelve digits, so what differs by more is another formula.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from pom_export.graph.function_check import CumSum
from pom_export.graph.fusing.contributed import OPS
from pom_export.graph.masks.parts import NotComputableError, asked_shape

Array = npt.NDArray[Any]
SHAPES: Final = ("Shape", "Size")
_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_RANDOM: Final = ("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli", "Dropout")
# Nothing that is recognised needs larger arrays.
_MOST_VALUES: Final = 2**26
# Larger constants, such as the weights of a projection, are converted again for each use.
_MOST_KEPT: Final = 2**16


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant's output; None for anything else."""
    return None if value is None else ir.convenience.get_const_tensor(value)


class Axes(NamedTuple):
    """Which axes of values are the batch and the tokens.

    Attributes:
        batch: the axis of the batch.
        tokens: that of the tokens; None: the other one without a fixed size, or else the second.
    """

    batch: int = 0
    tokens: int | None = None


USUAL_AXES: Final = Axes()


class Evaluator:
    """Computes values of a graph from given ones.

    Args:
        graph: the graph; nothing in it is changed.
        root: the model's graph, if that is another one, in whose nodes this one is.
        axes: which axes are those of tokens.
    """

    def __init__(self, graph: ir.Graph, root: ir.Graph | None = None, axes: Axes = USUAL_AXES) -> None:
        self.graph, self.root, self.axes = graph, graph if root is None else root, axes
        self._data: dict[ir.Value, bool] = {}
        self._kernels: dict[ir.Node, Any] = {}
        self._constants: dict[ir.Value, Array | None] = {}
        self._positions: dict[ir.Node, int] = {}
        self._before: dict[ir.Value, _Before | None] = {}

    def forget(self) -> None:
        """Forget what was derived from the graph, after it was changed."""
        self._data.clear()
        self._positions.clear()
        self._before.clear()

    def position(self, node: ir.Node) -> int:
        """Return the place of a node in the graph's order."""
        if not self._positions:
            self._positions = {each: index for index, each in enumerate(self.graph)}
        return self._positions[node]

    def depends_on_data(self, value: ir.Value) -> bool:
        """Return whether a value depends on more than constants and the sizes of inputs."""
        waiting = [value]
        while waiting:  # not recursive, since a graph may be deep
            current = waiting[-1]
            node = current.producer()
            if current in self._data:
                waiting.pop()
            elif constant_of(current) is not None or (node is not None and node.op_type in SHAPES):
                self._data[current] = False
            elif node is None or node.op_type.startswith(_RANDOM) or _has_graphs(node):
                self._data[current] = True
            elif unknown := [each for each in node.inputs if each is not None and each not in self._data]:
                waiting.extend(unknown)
            else:
                self._data[current] = any(self._data[each] for each in node.inputs if each is not None)
        return self._data[value]

    def data_inputs(self, node: ir.Node) -> list[ir.Value]:
        """Return the inputs of a node that depend on data, each once."""
        return list(dict.fromkeys(each for each in node.inputs if each is not None and self.depends_on_data(each)))

    def sources(self, value: ir.Value, farthest: int, stop: Collection[str] = ()) -> list[ir.Value]:
        """Return a value and those before it, the nearest first, as far as each is computed from the one before alone.

        Args:
            value: the value.
            farthest: how many to return at most, after the value itself.
            stop: operators that are not looked behind.
        """
        if not self._before:
            self._before = self._all_before()
        found = [value]
        while len(found) <= farthest:
            node = found[-1].producer()
            before = None if node is None or node.op_type in stop else self._before.get(found[-1])
            if before is None:
                break
            found.append(before.value)
        return found

    def _all_before(self) -> dict[ir.Value, _Before | None]:
        """Return for each value the nearest one that all of its data goes through: its dominator."""
        found: dict[ir.Value, _Before | None] = {}
        for node in self.graph:
            data = self.data_inputs(node)
            before = (
                functools.reduce(lambda one, other: _common(found, one, other), (_at(found, each) for each in data))
                if data
                else None
            )
            found |= dict.fromkeys(node.outputs, before)
        return found

    def constants_behind(self, values: Iterable[ir.Value]) -> tuple[list[ir.Value], list[ir.Node]]:
        """Return the constants and the nodes that values without data are computed from."""
        constants: dict[ir.Value, None] = {}
        nodes: dict[ir.Node, None] = {}
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if constant_of(value) is not None:
                constants[value] = None
            elif node is not None and node not in nodes and node.op_type not in SHAPES:
                nodes[node] = None
                waiting.extend(each for each in node.inputs if each is not None)
        return list(constants), list(nodes)

    def run(
        self, wanted: Sequence[ir.Value], given: Mapping[ir.Value, Array], sizes: Mapping[str, int]
    ) -> dict[ir.Value, Array]:
        """Compute the wanted values that can be computed; the others are missing from the result.

        Args:
            wanted: the values.
            given: arrays for some values.
            sizes: sizes of the graph's dynamic dimensions, by name.
        """
        known: dict[ir.Value, Array | None] = dict(given)
        for value in wanted:
            self._compute(value, known, sizes)
        return {value: array for value in wanted if (array := known.get(value)) is not None}

    def _compute(self, value: ir.Value, known: dict[ir.Value, Array | None], sizes: Mapping[str, int]) -> None:
        waiting = [value]
        while waiting:
            current = waiting[-1]
            node = current.producer()
            if current in known:
                waiting.pop()
            elif (array := self._constant(current)) is not None:
                known[current] = array
            elif node is None or _has_graphs(node) or node.op_type.startswith(_RANDOM):
                known[current] = None
            elif node.op_type in SHAPES and node.inputs[0] not in known:
                known[current] = self._size(node, current, known, sizes, waiting)
                if known[current] is None and waiting[-1] is not current:
                    del known[current]  # its input is computed first
            elif unknown := [each for each in node.inputs if each is not None and each not in known]:
                waiting.extend(unknown)
            else:
                self._run_node(node, known)

    def _size(
        self,
        node: ir.Node,
        value: ir.Value,
        known: Mapping[ir.Value, Array | None],
        sizes: Mapping[str, int],
        waiting: list[ir.Value],
    ) -> Array | None:
        """Return a shape: of the array if it follows from given ones, else as the graph declares it."""
        asked = node.inputs[0]
        if asked is None:
            return None
        if self._follows(asked, known):
            waiting.append(asked)
            return None
        try:
            return asked_shape(value, sizes)
        except NotComputableError:
            return None

    def _follows(self, value: ir.Value, known: Mapping[ir.Value, Array | None]) -> bool:
        """Return whether a value can be computed from known ones, without any other data."""
        waiting, seen = [value], set()
        while waiting:
            current = waiting.pop()
            if current in seen or known.get(current) is not None or not self.depends_on_data(current):
                continue
            seen.add(current)
            node = current.producer()
            if node is None or current in known:
                return False
            waiting.extend(each for each in node.inputs if each is not None)
        return True

    def _constant(self, value: ir.Value) -> Array | None:
        if value in self._constants:
            return self._constants[value]
        tensor = constant_of(value)
        array = None if tensor is None else widened(tensor.numpy())
        if array is None or array.size <= _MOST_KEPT:
            self._constants[value] = array
        return array

    def _run_node(self, node: ir.Node, known: dict[ir.Value, Array | None]) -> None:
        arrays = [None if each is None else known[each] for each in node.inputs]
        present = [array for each, array in zip(node.inputs, arrays, strict=True) if each is not None]
        outputs: Sequence[Array | None] = [None] * len(node.outputs)
        if all(array is not None for array in present):
            # What a node that is not understood does is unknown, so that any failure means the same.
            try:
                with np.errstate(all="ignore"):
                    outputs = self._kernel(node).run(None, _feeds(node, arrays), attributes={})
                outputs = [each if each is not None and np.size(each) <= _MOST_VALUES else None for each in outputs]
            except Exception:  # noqa: BLE001 (the reference implementation raises anything)
                outputs = [None] * len(node.outputs)
        known.update(zip(node.outputs, outputs, strict=False))

    def _kernel(self, node: ir.Node) -> Any:
        if node not in self._kernels:
            proto = ir.to_proto(node)
            del proto.input[:], proto.output[:]
            proto.input.extend(_name(index) if each is not None else "" for index, each in enumerate(node.inputs))
            proto.output.extend(f"y{index}" for index in range(len(node.outputs)))
            _widen(proto)
            opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in self._opsets().items()]
            names = [name for name in proto.input if name]
            function = onnx.helper.make_function("local", "f", names, proto.output, [proto], opsets)
            self._kernels[node] = ReferenceEvaluator(function, new_ops=[CumSum, *OPS])
        return self._kernels[node]

    def _opsets(self) -> Mapping[str, int]:
        return {"": 20, **self.root.opset_imports}


class _Before(NamedTuple):
    """A value that other values go through, and how many it goes through itself."""

    value: ir.Value
    depth: int


def _at(found: Mapping[ir.Value, _Before | None], value: ir.Value) -> _Before | None:
    before = found.get(value)
    return _Before(value, 0 if before is None else before.depth + 1)


def _common(found: Mapping[ir.Value, _Before | None], one: _Before | None, other: _Before | None) -> _Before | None:
    """Return the nearest value that two values both go through, themselves included."""
    while one is not None and other is not None and one.value is not other.value:
        if one.depth >= other.depth:
            one = found.get(one.value)
        else:
            other = found.get(other.value)
    return None if other is None else one


def widened(array: Array) -> Array:
    """Return an array with floating-point numbers as float64."""
    return array if array.dtype.kind in "biu" else array.astype(np.float64)


def _feeds(node: ir.Node, arrays: Sequence[Array | None]) -> dict[str, Array]:
    return {_name(index): array for index, array in enumerate(arrays) if array is not None and node.inputs[index]}


def _name(index: int) -> str:
    return f"x{index}"


def _has_graphs(node: ir.Node) -> bool:
    return any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values())


def _widen(proto: onnx.NodeProto) -> None:
    """Let a node make float64 where it makes another floating-point type."""
    for attribute in proto.attribute:
        if attribute.name in {"to", "dtype"} and attribute.i in _FLOATS:
            attribute.i = onnx.TensorProto.DOUBLE
        elif attribute.name == "value" and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(widened(onnx.numpy_helper.to_array(attribute.t))))
