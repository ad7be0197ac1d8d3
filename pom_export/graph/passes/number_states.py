"""Give a state's inputs and outputs the form that servers need which carry it from call to call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.claims import METADATA_PREFIX, SERVER_STATES, STATEFUL
from pom_export.graph.nodes import add_constant

_PAST: Final = "past"


def numbered_names(pasts: Sequence[str]) -> list[tuple[str, str]]:
    """Return new names for the inputs and outputs of a state, of which both lists, sorted, are in the given order.

    Triton's core pairs the sorted names of a state's inputs with the sorted names of its outputs, whatever the
    configuration says (triton-inference-server/server 8586): `past_conv.0` comes before `past_key_values.0.key`, and
    `present.0.key` before `present_conv.0`.

    Args:
        pasts: the names of the inputs, in the order of the outputs that belong to them.
    """
    width = len(str(len(pasts)))
    numbered = [f"{place:0{width}}.{name.removeprefix(_PAST).lstrip('_.')}" for place, name in enumerate(pasts)]
    return [(f"past.{name}", f"present.{name}") for name in numbered]


class NumberStatesPass(ir.passes.InPlacePass):
    """Rename a state's inputs and outputs, and give those that are a number for each row a second axis, of size 1.

    Servers' configurations do not list the batch axis, and take no tensor without another one. The metadata then names
    the pairs, and no longer claims a state that our own streams could use.

    Args:
        states: the names of the input and the output of each part of the state.
    """

    def __init__(self, states: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._states = states

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the interface."""
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        outputs = {value.name: value for value in graph.outputs}
        names = numbered_names([past for past, _ in self._states])
        axis = None
        for (past, present), (new_past, new_present) in zip(self._states, names, strict=True):
            before, after = inputs[past], outputs[present]
            if len(before.shape or ()) == 1:
                axis = axis or add_constant(graph, "state_axis", np.array([1]))
                before, after = _with_axis(graph, before, after, axis)
            before.name, after.name = new_past, new_present
        properties = model.metadata_props
        properties[f"{METADATA_PREFIX}{SERVER_STATES}"] = json.dumps(dict(names))
        properties.pop(f"{METADATA_PREFIX}{STATEFUL}", None)
        return ir.passes.PassResult(model, modified=bool(names))


def _with_axis(graph: ir.Graph, before: ir.Value, after: ir.Value, axis: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Give an input (B) and an output (B) a second axis, and return the new ones, (B, 1)."""
    wide = ir.Value(shape=ir.Shape([*before.shape, 1]), type=before.type)  # type: ignore[misc]
    narrow = ir.node("Squeeze", [wide, axis], name="state_squeeze")
    narrow.outputs[0].shape, narrow.outputs[0].type = before.shape, before.type
    ir.convenience.replace_all_uses_with(before, narrow.outputs[0])
    graph.inputs[graph.inputs.index(before)] = wide
    graph.insert_before(graph[0], narrow)
    widen = ir.node("Unsqueeze", [after, axis], name="state_unsqueeze")
    widen.outputs[0].shape, widen.outputs[0].type = ir.Shape([*after.shape, 1]), after.type  # type: ignore[misc]
    graph.append(widen)
    graph.outputs[graph.outputs.index(after)] = widen.outputs[0]
    return wide, widen.outputs[0]
