"""Build nodes that compute the last row of a mask, the weight of each key token, without N x N values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from pom_export.graph.masks.parts import MaskPart, NotComputableError
from pom_export.graph.nodes import add_constant

_MASK_RANK = len(("batch", "queries", "tokens"))
_PAIR_RANK = len(("queries", "tokens"))
# Numbers of tokens at which a constant row must consist of a single number, the same for all.
_SIZES = (2, 3, 5, 64, 300)
_ELEMENTWISE = (
    *("Cast", "CastLike", "Identity", "And", "Or", "Not", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseNot", "Where"),
    *("Mul", "Add", "Sub", "Div", "Neg", "Abs", "Sign", "Exp", "Relu", "Min", "Max", "Clip", "IsInf", "IsNaN"),
    *("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"),
)
_Shape = list[int | ir.SymbolicDim]


class NoRowError(Exception):
    """The last row of a mask cannot be computed by itself."""


def last_row(mask: ir.Value, part: MaskPart, graph: ir.Graph) -> tuple[ir.Value, list[ir.Node]]:
    """Return the weights (1 or B, N) that the last query gives the keys, and the new nodes that compute them, in order.

    Args:
        mask: the mask, (1 or B, T, N). If it was cast from bool, the weights are bool.
        part: the part of the graph that computes it.
        graph: the graph to which constants are added.

    Raises:
        NoRowError: the last row cannot be computed by itself.
    """
    node = mask.producer()
    if node is not None and node.op_type == "Cast" and mask.name not in part.keys:
        given = node.inputs[0]
        mask = given if given is not None and given.dtype == ir.DataType.BOOL else mask
    rows = _Rows(part, graph)
    row = rows.of(mask)
    rank = len(row.shape or ())
    if rank == _MASK_RANK:
        row = rows.add("Squeeze", [row, rows.integers([1])], row, [(row.shape or [])[0], (row.shape or [])[2]])
    elif rank == 1:
        row = rows.add("Unsqueeze", [row, rows.integers([0])], row, [1, *(row.shape or ())])
    elif rank != _PAIR_RANK:
        raise NoRowError
    return row, rows.nodes


class _Rows:
    """The last rows of values, with a query axis of size 1 or without that axis."""

    def __init__(self, part: MaskPart, graph: ir.Graph) -> None:
        self.part, self.graph = part, graph
        self.nodes: list[ir.Node] = []
        self._known: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        if value not in self._known:
            self._known[value] = self._row(value)
        return self._known[value]

    def add(
        self, op: str, inputs: Sequence[ir.Value], like: ir.Value, shape: Sequence[int | ir.SymbolicDim]
    ) -> ir.Value:
        """Add a node whose output has the type of another value."""
        node = ir.node(op, inputs)
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), like.type
        self.nodes.append(node)
        return node.outputs[0]

    def integers(self, numbers: list[int]) -> ir.Value:
        return add_constant(self.graph, "mask_axes", np.array(numbers, np.int64))

    def _row(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if value.name in self.part.keys:
            return value
        if not self.part.depends_on_data(value):
            return self._constant_row(value)
        given = None if node is None else node.inputs[0]
        if node is None or given is None:
            raise NoRowError
        if node.op_type in _ELEMENTWISE:
            return self._cloned(node, [None if v is None else self.of(v) for v in node.inputs])
        if node.op_type in {"Expand", "Tile"} and _repeats_queries(given, value):
            return self.of(given)
        if node.op_type == "Trilu" and _is_lower(node):
            return self.of(given)
        if node.op_type == "Gather" and _picks_of_leading(node, given):
            return self._picked(node, given, value)
        if node.op_type in {"Unsqueeze", "Squeeze", "Reshape"}:
            return self._reshaped(given, value)
        raise NoRowError

    def _constant_row(self, value: ir.Value) -> ir.Value:
        """Return the only number in the last row of a data-independent value, or the value itself if it is one row."""
        shape = list(value.shape or ())
        if len(shape) < _PAIR_RANK or shape[-2] == 1:
            return value
        part = MaskPart((value,), self.part.tokens)
        numbers: set[float] = set()
        for n in _SIZES:
            try:
                (computed,) = part.compute(part.sizes_at(n), {})
            except NotComputableError:
                continue
            numbers |= set(np.unique(computed[..., -1, :]).tolist())
        if len(numbers) != 1 or value.dtype is None:
            raise NoRowError
        array = np.array(numbers.pop()).astype(value.dtype.numpy())
        return add_constant(self.graph, "mask_row", array)

    def _cloned(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
        clone = ir.node(node.op_type, inputs, dict(node.attributes))
        output = clone.outputs[0]
        output.type = node.outputs[0].type
        output.shape = ir.Shape(_broadcast([list(v.shape or ()) for v in inputs if v is not None]))
        self.nodes.append(clone)
        return output

    def _picked(self, node: ir.Node, given: ir.Value, value: ir.Value) -> ir.Value:
        """Return the row of one entry of a leading axis; a row that is repeated along that axis occurs only once."""
        row, axis = self.of(given), node.attributes.get("axis")
        before = list(given.shape or ())
        place = (0 if axis is None else axis.as_int() % len(before)) - len(before)
        shape = list(row.shape or ())
        if len(shape) < -place:
            return row
        left = shape[:place] + shape[len(shape) + place + 1 :]
        if shape[place] != before[place]:
            return self.add("Squeeze", [row, self.integers([place])], row, left)
        gathered = ir.node("Gather", [row, node.inputs[1]], {"axis": place})
        gathered.outputs[0].shape, gathered.outputs[0].type = ir.Shape(left), value.type
        self.nodes.append(gathered)
        return gathered.outputs[0]

    def _reshaped(self, given: ir.Value, value: ir.Value) -> ir.Value:
        """Return the row of a value whose leading axes of size 1 were changed."""
        before, after = list(given.shape or ()), list(value.shape or ())
        if len(before) < _PAIR_RANK or len(after) < _PAIR_RANK or before[-2:] != after[-2:]:
            raise NoRowError
        if [size for size in before[:-2] if size != 1] != [size for size in after[:-2] if size != 1]:
            raise NoRowError
        row = self.of(given)
        shape = list(row.shape or ())
        if len(shape) <= _PAIR_RANK or len(before) == len(after):
            return row
        if len(after) > len(before):
            at = [axis for axis, size in enumerate(after[:-2]) if size == 1][: len(after) - len(before)]
            return self.add("Unsqueeze", [row, self.integers(at)], row, [*after[:-2], *shape[-2:]])
        at = [axis for axis, size in enumerate(shape[:-2]) if size == 1][: len(before) - len(after)]
        kept = [size for axis, size in enumerate(shape) if axis not in at]
        return self.add("Squeeze", [row, self.integers(at)], row, kept)


def _repeats_queries(given: ir.Value, value: ir.Value) -> bool:
    """Return whether a value repeats another along the query axis, or along axes of size 1 or new leading axes."""
    before, after = list(given.shape or ()), list(value.shape or ())
    after = after[len(after) - len(before) :]
    return bool(before) and before[-1] == after[-1] and all(b in {1, a} for b, a in zip(before, after, strict=True))


def _picks_of_leading(node: ir.Node, given: ir.Value) -> bool:
    """Return whether a node takes one entry of an axis before the last two, as `mask[:, 0]` does."""
    axis, index = node.attributes.get("axis"), node.inputs[1]
    rank = len(given.shape or ())
    place = 0 if axis is None else axis.as_int() % max(rank, 1)
    return place < rank - _PAIR_RANK and index is not None and index.shape is not None and len(index.shape) == 0


def _is_lower(node: ir.Node) -> bool:
    upper = node.attributes.get("upper")
    k = ir.convenience.get_const_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    whole = len(node.inputs) < _PAIR_RANK or (k is not None and int(k.numpy()) >= 0)
    return upper is not None and upper.as_int() == 0 and whole


def _broadcast(shapes: Sequence[_Shape]) -> _Shape:
    rank = max(map(len, shapes), default=0)
    result: _Shape = []
    for axis in range(-rank, 0):
        sizes = [shape[axis] for shape in shapes if len(shape) >= -axis]
        result.append(next((size for size in sizes if size != 1), 1))
    return result
