"""Fuse an aggregation and its gate into one node."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import add_constant, only_user, take_place
from pom_export.graph.passes.selections import Selection, find_selections

_ALPHA_TOLERANCE = 1e-6


class _Gate(NamedTuple):
    """The part of a gate that the gated op computes itself: activation(gate + bias)."""

    gate: ir.Value
    bias: ir.Value | None
    activation: str


class FuseGatePass(ir.passes.InPlacePass):
    """Turn `activation(gate + bias) * aggregate` into the gated op, which reads and writes memory only once."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse each remaining selection."""
        selections = find_selections(model)
        for selection in selections:
            _fuse(model.graph, selection)
        return ir.passes.PassResult(model, modified=bool(selections))


def _fuse(graph: ir.Graph, selection: Selection) -> None:
    aggregation, output = selection.aggregation, selection.selected
    gate = _gate_of(selection.gate)
    name = (aggregation.name or "").replace(contract.OP_NAME, contract.GATED_OP_NAME)
    bias = gate.bias if gate.bias is not None else _zeros(graph, f"{name}/gate_bias", selection)
    given = {**aggregation.attributes, "gate_activation": ir.AttrString("gate_activation", gate.activation)}
    attributes = [given[attribute] for attribute in contract.GATED_ATTRIBUTES]
    x, *others = aggregation.inputs
    fused = ir.Node(
        contract.DOMAIN,
        contract.GATED_OP_NAME,
        [x, gate.gate, bias, *others],
        attributes,
        num_outputs=len(aggregation.outputs),
        name=name,
    )
    graph.insert_before(selection.product, fused)
    take_place(output, fused.outputs[0])
    for present, gated_present in zip(aggregation.outputs[1:], fused.outputs[1:], strict=True):
        take_place(present, gated_present)


def _gate_of(gate: ir.Value) -> _Gate:
    """Split off the parts of a gate's computation that the gated op can do and nothing else needs."""
    node = gate.producer()
    activation = None if node is None else _activation(node)
    if node is None or activation is None or only_user(gate) is None or node.inputs[0] is None:
        return _Gate(gate, None, "identity")
    value = node.inputs[0]
    add = value.producer()
    if add is not None and add.op_type == "Add" and only_user(value) is node:
        for projected, bias in (add.inputs, tuple(reversed(add.inputs))):
            if projected is not None and bias is not None and _is_bias(bias, gate) and projected.shape == gate.shape:
                return _Gate(projected, bias, activation)
    return _Gate(value, None, activation)


def _activation(node: ir.Node) -> str | None:
    if node.op_type == "Sigmoid":
        return "sigmoid"
    if node.op_type != "HardSigmoid":
        return None
    alpha, beta = (node.attributes.get(name) for name in ("alpha", "beta"))
    if alpha is None or abs(alpha.as_float() - 1 / 6) > _ALPHA_TOLERANCE:
        return None
    return "hardsigmoid" if beta is None or beta.as_float() == 0.5 else None


def _is_bias(value: ir.Value, gate: ir.Value) -> bool:
    return value.shape is not None and list(value.shape) == list(gate.shape or ())[-1:] and value.dtype == gate.dtype


def _zeros(graph: ir.Graph, name: str, selection: Selection) -> ir.Value:
    assert selection.gate.dtype is not None
    zeros = np.zeros(selection.gates, selection.gate.dtype.numpy())
    return add_constant(graph, name, zeros, selection.gate.dtype)
