"""Which function a node of our ops needs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function import FunctionVariant
from pom_export.graph.gated_function import GatedVariant


def variant_of(node: ir.Node, inputs: Sequence[str] = contract.INPUTS) -> FunctionVariant:
    """Return the function variant that an aggregation needs.

    Args:
        node: of the plain op, or of the gated one.
        inputs: names of the node's inputs.

    Raises:
        InputError: an input of the node has no known type, or the coefficients no known shape.
    """
    types: dict[str, ir.DataType] = {}
    degree: int | object = node.attributes["degree"].as_int()
    for name, value in zip(inputs, node.inputs, strict=False):
        if value is None or value.dtype is None or value.shape is None:
            raise _unknown(node)
        if len(value.shape) > 1:  # what is of rank 1 is a placeholder, or of one type always
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
        InputError: as `variant_of`.
    """
    _, gate, bias, *_ = node.inputs
    channels = (node.outputs[0].shape or (None,))[-1]
    if gate is None or gate.shape is None or bias is None or bias.dtype is None or channels is None:
        raise _unknown(node)
    gates = gate.shape[-1]
    if not isinstance(gates, int):
        raise _unknown(node)
    return GatedVariant(
        aggregation=variant_of(node, contract.GATED_INPUTS),
        activation=node.attributes["gate_activation"].as_string(),
        bias_type=bias.dtype,
        heads=None if gates == channels else gates,
    )


def _unknown(node: ir.Node) -> InputError:
    return InputError(
        f"node {node.name}: the types and shapes of its inputs must be known",
        "Export coefficients of a fixed degree",
    )
