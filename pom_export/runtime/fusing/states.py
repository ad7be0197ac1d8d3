"""States of all layers in one tensor, which a fused node reads and writes in place of a slice for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.nodes import only_user
from pom_export.runtime.fusing.constants import array_of, maker_of
from pom_export.runtime.fusing.steps import Aggregate, Step

_AXIS: Final = 1  # (B, layers, 2, C)
_RANK: Final = 4
_PAST_STATE: Final = -2  # among an aggregation's last inputs


@dataclass(frozen=True)
class _Slice:
    """A layer's state among those of all: nodes that take it out of `past` or put it into `present`."""

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    layer: int


def with_whole_states(run: Sequence[Step]) -> list[Step]:
    """Return a run whose aggregations read and write tensors with the states of all layers, if they can.

    They can if the run has all layers, and nothing else uses their states.
    """
    aggregations = [step for step in run if isinstance(step, Aggregate) and step.states]
    pasts = [_taken_out(step) for step in aggregations]
    presents = [_put_in(step) for step in aggregations]
    whole = {each.value for each in pasts if each is not None}, {each.value for each in presents if each is not None}
    if None in pasts or None in presents or [len(values) for values in whole] != [1, 1]:
        return list(run)
    changed: dict[Step, Step] = {}
    for step, past, present in zip(aggregations, pasts, presents, strict=True):
        assert past is not None
        assert present is not None
        if past.layer != present.layer:
            return list(run)
        others = (*step.others[:_PAST_STATE], past.value, *step.others[_PAST_STATE + 1 :])
        changed[step] = replace(
            step,
            nodes=(*step.nodes, *past.nodes, *present.nodes),
            others=others,
            states=(present.value, *step.states[1:]),
            layer=past.layer,
            layers=len(aggregations),
        )
    layers = {step.layer for step in changed.values() if isinstance(step, Aggregate)}
    (past_state,), (present_state,) = whole
    concat = present_state.producer()
    assert concat is not None
    assert past_state.shape is not None
    if layers != set(range(len(aggregations))) or len(concat.inputs) != len(layers):
        return list(run)
    return [changed.get(step, step) for step in run] if past_state.shape[_AXIS] == len(layers) else list(run)


def _taken_out(step: Aggregate) -> _Slice | None:
    """Read Squeeze(Slice(past)) of a single layer."""
    squeeze = maker_of(step.others[_PAST_STATE], "Squeeze")
    taken = maker_of(squeeze.inputs[0], "Slice") if squeeze is not None else None
    if squeeze is None or taken is None or _integers(squeeze, 1) != [_AXIS]:
        return None
    past = taken.inputs[0]
    starts, ends, axes, steps = (_integers(taken, i) for i in range(1, 5))
    if past is None or not past.is_graph_input() or past.shape is None or len(past.shape) != _RANK:
        return None
    if starts is None or ends is None or len(starts) != 1 or axes != [_AXIS] or steps not in (None, [1]):
        return None
    if ends != [starts[0] + 1] or starts[0] < 0:
        return None
    if only_user(taken.outputs[0]) is not squeeze or only_user(squeeze.outputs[0]) is not step.nodes[0]:
        return None
    return _Slice((taken, squeeze), past, starts[0])


def _put_in(step: Aggregate) -> _Slice | None:
    """Read Concat(..., Unsqueeze(state), ...), whose output is the graph's."""
    unsqueeze = only_user(step.states[0])
    if unsqueeze is None or unsqueeze.op_type != "Unsqueeze" or _integers(unsqueeze, 1) != [_AXIS]:
        return None
    concat = only_user(unsqueeze.outputs[0])
    if concat is None or concat.op_type != "Concat" or concat.domain:
        return None
    axis, whole = concat.attributes.get("axis"), concat.outputs[0]
    if axis is None or axis.as_int() != _AXIS or not whole.is_graph_output() or whole.uses():
        return None
    return _Slice((unsqueeze, concat), whole, list(concat.inputs).index(unsqueeze.outputs[0]))


def _integers(node: ir.Node, position: int) -> list[int] | None:
    array = array_of(node.inputs[position]) if position < len(node.inputs) else None
    return None if array is None else [int(number) for number in array.reshape(-1)]
