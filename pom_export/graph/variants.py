"""Determine which function a node of our ops needs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function import FunctionVariant
from pom_export.graph.gated_function import GatedVariant
from pom_export.graph.nodes import input_named

# Inputs that are never placeholders, even if shape inference finds no shape for them, as is common in a branch.
_NO_PLACEHOLDERS = ("x", "gate", "gate_bias", *contract.STATE_INPUTS)


def variant_of(node: ir.Node, inputs: Sequence[str] = contract.INPUTS) -> FunctionVariant:
    """Return the function variant that an aggregation needs.

    Args:
        node: a node of the plain op, or of the gated one.
        inputs: names of the node's inputs.

    Raises:
        InputError: the type of an input is unknown, or the shape of the coefficients is.
    """
    types: dict[str, ir.DataType] = {}
    degree: int | object = node.attributes["degree"].as_int()
    for name, value in zip(inputs, node.inputs, strict=False):
        if value is None or value.dtype is None:
            raise _unknown(node)
        if name in _NO_PLACEHOLDERS:
            types[name] = value.dtype
        elif value.shape is None:
            raise _unknown(node)
        elif len(value.shape) > 1:  # a value of rank 1 is a placeholder, or always has the same type
            types[name] = value.dtype
            degree = value.shape[1] if name == "coefficients" else degree
    if not isinstance(degree, int):
        raise _unknown(node)
    return FunctionVariant(
        mode=node.attributes["mode"].as_string(),
        epsilon=node.attributes["epsilon"].as_float(),
        degree=degree,
        x_type=types["x"],
        coefficient_type=types.get("coefficients"),
        mask_type=types.get("mask"),
        rotation_type=types.get("cos"),
        rotary_blocks=node.attributes["rotary_blocks"].as_int(),
        stateful=bool(node.attributes["stateful"].as_int()),
    )


def gated_variant_of(node: ir.Node) -> GatedVariant:
    """Return the function variant that a gated aggregation needs.

    Raises:
        InputError: as in `variant_of`.
    """
    x, gate, bias, *_ = node.inputs
    gates = _size(bias, 0) or _size(gate, -1)
    channels = _size(x, -1) or _size(node.outputs[0], -1) or _size(input_named(node, "coefficients"), 0)
    if bias is None or bias.dtype is None or gates is None or channels is None:
        raise _unknown(node)
    return GatedVariant(
        aggregation=variant_of(node, contract.GATED_INPUTS),
        activation=node.attributes["gate_activation"].as_string(),
        bias_type=bias.dtype,
        heads=None if gates == channels else gates,
    )


def _size(value: ir.Value | None, axis: int) -> int | None:
    """Return a size of a value if it is fixed and known."""
    size = value.shape[axis] if value is not None and value.shape else None
    return size if isinstance(size, int) else None


def _unknown(node: ir.Node) -> InputError:
    return InputError(
        f"node {node.name}: the types and shapes of its inputs must be known",
        "Export coefficients of a fixed degree",
    )
