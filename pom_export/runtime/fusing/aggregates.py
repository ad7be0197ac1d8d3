"""The causal aggregations of our ops, as steps."""

from __future__ import annotations

from typing import Final

import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import input_named, input_names, op_of
from pom_export.runtime.fusing.constants import is_constant
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.steps import Aggregate

_TYPES: Final = {"mask": (ir.DataType.BOOL, ir.DataType.FLOAT), "past_length": (ir.DataType.INT64,)}
_MAY_BE_PLACEHOLDERS: Final = ("coefficients", "mask", "cos", "sin")
_CONSTANT: Final = ("coefficients", "gate_bias")


def aggregate(node: ir.Node, shapes: Shapes) -> Aggregate | None:
    """Read an aggregation of ours of mode "causal" in float32, with a state or without."""
    if op_of(node) is None or text_of(node, "mode") != "causal":
        return None
    x, gate = node.inputs[0], input_named(node, "gate") if is_gated(node) else None
    shape, gates = shapes.of(x), shapes.of(gate)
    if x is None or shape is None or (is_gated(node) and (gates is None or gates[:2] != shape[:2])):
        return None
    others = []
    for name in input_names(node)[2 if is_gated(node) else 1 :]:
        given = dict(zip(input_names(node), node.inputs, strict=False)).get(name)
        if given is not None and given.shape is None and name in _MAY_BE_PLACEHOLDERS:
            return None
        value = input_named(node, name)
        if value is not None and value.dtype not in _TYPES.get(name, (ir.DataType.FLOAT,)):
            return None
        if value is not None and name in _CONSTANT and not is_constant(value):
            return None
        others.append(value)
    states = tuple(node.outputs[1:])
    if len(states) != (2 if whole_of(node, "stateful", contract.DEFAULT_STATEFUL) else 0):
        return None
    return Aggregate((node,), x, node.outputs[0], shape[-1], shape[-1], gate, tuple(others), states)


def is_gated(node: ir.Node) -> bool:
    """Return whether an aggregation has a gate."""
    return op_of(node) == contract.GATED_OP_NAME


def text_of(node: ir.Node, name: str, default: str = "") -> str:
    """Return a text attribute."""
    attribute = node.attributes.get(name)
    return attribute.as_string() if attribute is not None else default


def whole_of(node: ir.Node, name: str, default: int) -> int:
    """Return an attribute that is an integer."""
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default
