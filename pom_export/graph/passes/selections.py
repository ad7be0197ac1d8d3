"""Find where a gate multiplies an aggregate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from pom_export.graph.nodes import aggregation_nodes, only_user

_RANK = len(("batch", "tokens", "channels"))


@dataclass(frozen=True)
class Selection:
    """A gate multiplying an aggregate, where each gate value applies to C / S neighbouring channels.

    Attributes:
        aggregation: the node, of mode "mean" or "causal".
        gate: (B, T, S).
        product: the node that multiplies them.
        selected: its result, (B, T, C).
    """

    aggregation: ir.Node
    gate: ir.Value
    product: ir.Node
    selected: ir.Value

    @property
    def gates(self) -> int:
        """The number of gate values per token, S."""
        return _size(self.gate, -1)

    @property
    def channels(self) -> int:
        """The number of channels, C."""
        return _size(self.selected, -1)


def find_selections(model: ir.Model) -> list[Selection]:
    """Return the selections whose aggregate has no other use, in order."""
    candidates = (_selection_of(node) for node in aggregation_nodes(model))
    return [selection for selection in candidates if selection is not None and _is_whole(selection)]


def _selection_of(aggregation: ir.Node) -> Selection | None:
    aggregate = aggregation.outputs[0]
    user = only_user(aggregate)
    if user is not None and user.op_type == "Mul":
        for gate in _others(user, aggregate):
            return Selection(aggregation, gate, user, user.outputs[0])
    if user is None or user.op_type != "Reshape" or user.inputs[0] is not aggregate:
        return None
    # (B, ., S, C / S) times (B, T, S, 1), reshaped back, which is how `pom_export.mixer.aggregation.select` handles
    # heads.
    product = only_user(user.outputs[0])
    back = None if product is None else only_user(product.outputs[0])
    if product is None or back is None or product.op_type != "Mul" or back.op_type != "Reshape":
        return None
    for unfolded in _others(product, user.outputs[0]):
        node = unfolded.producer()
        values = node.inputs[0] if node is not None and node.op_type == "Unsqueeze" else None
        if values is not None and _is_folded(aggregate, user.outputs[0], unfolded, values):
            return Selection(aggregation, values, product, back.outputs[0])
    return None


def _others(product: ir.Node, operand: ir.Value) -> Iterator[ir.Value]:
    yield from (value for value in product.inputs if value is not None and value is not operand)


def _is_folded(aggregate: ir.Value, folded: ir.Value, unfolded: ir.Value, gate: ir.Value) -> bool:
    """Return whether (B, T, S) was reshaped to (B, T, S, 1), and the aggregate's channels to (S, C / S)."""
    shapes = [value.shape for value in (aggregate, folded, unfolded, gate)]
    if any(shape is None for shape in shapes):
        return False
    whole, cut, column, values = (list(shape or ()) for shape in shapes)
    if (len(whole), len(cut), len(column), len(values)) != (_RANK, _RANK + 1, _RANK + 1, _RANK):
        return False
    return column == [*values, 1] and cut[:2] == whole[:2] and cut[2] == values[2] and _is_known(*whole, *values)


def _is_known(*sizes: int | ir.SymbolicDim) -> bool:
    """Return whether each size has a number or a name: two sizes without either may differ."""
    return all(isinstance(size, int) or size.value is not None for size in sizes)


def _is_whole(selection: Selection) -> bool:
    """Return whether the shapes and types are those that the gated op needs."""
    aggregate = selection.aggregation.outputs[0]
    values = (aggregate, selection.gate, selection.selected)
    if any(value.shape is None or len(value.shape) != _RANK or value.dtype != aggregate.dtype for value in values):
        return False
    (batch, rows, channels), gate, selected = (list(value.shape or ()) for value in values)
    if not isinstance(channels, int) or not isinstance(gate[2], int) or channels % gate[2]:
        return False
    fits = {"mean": rows == 1, "causal": rows == gate[1]}.get(selection.aggregation.attributes["mode"].as_string())
    return bool(fits) and _is_known(batch, rows, gate[1]) and gate[0] == batch and selected[:2] == [batch, gate[1]]


def _size(value: ir.Value, axis: int) -> int:
    size = value.shape[axis] if value.shape is not None else None
    assert isinstance(size, int)  # checked by `_is_whole`
    return size
