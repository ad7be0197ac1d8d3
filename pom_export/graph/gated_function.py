"""Write the gated op as a model-local function of standard ONNX ops."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.function import FunctionVariant, add_aggregation, make_function, name_outputs
from pom_export.graph.function_body import Body


@dataclass(frozen=True)
class GatedVariant:
    """What a body of the gated op depends on.

    Attributes:
        aggregation: the variant of the aggregation in it.
        activation: the gate's activation.
        bias_type: type of the gate's bias.
        heads: S, the number of gate values per token, if each serves several channels; None: one gate per channel.
    """

    aggregation: FunctionVariant
    activation: str
    bias_type: ir.DataType
    heads: int | None = None


def build_gated_function(variant: GatedVariant, opset: int, name: str = contract.GATED_OP_NAME) -> ir.Function:
    """Build the function that computes the gated op for one variant.

    It repeats the aggregation's body, because a node of the plain op inside a function would not reach a kernel:
    neither TensorRT nor ONNX Runtime looks for one there.

    Args:
        variant: determines the body.
        opset: version of the standard ops; it must be the model's.
        name: name of the op in nodes of this variant.
    """
    body, inputs = Body(opset), [ir.Value(name=given) for given in contract.GATED_INPUTS]
    x, gate, gate_bias, *others = inputs
    aggregate, *present = add_aggregation(body, variant.aggregation, [x, *others])
    x_type = variant.aggregation.x_type
    gate = body.Add(body.as_float(gate, x_type), body.as_float(gate_bias, variant.bias_type))
    if variant.activation == "sigmoid":
        gate = body.Sigmoid(gate)
    elif variant.activation == "hardsigmoid":
        gate = body.HardSigmoid(gate, alpha=1 / 6, beta=0.5)
    z = body.as_type(_select(body, gate, aggregate, variant.heads), x_type)
    outputs = name_outputs([z, *present], contract.GATED_OUTPUTS)
    given = inputs[: variant.aggregation.inputs + contract.GATED_REQUIRED_INPUTS - contract.REQUIRED_INPUTS]
    return make_function(body, name, given, outputs, contract.GATED_ATTRIBUTES)


def _select(body: Body, gate: ir.Value, aggregate: ir.Value, heads: int | None) -> ir.Value:
    """Multiply the aggregate (B, 1 or T, C) by the gate (B, T, S), giving (B, T, C)."""
    if heads is None:
        return body.Mul(gate, aggregate)
    # (B, ., S, C / S) times (B, T, S, 1); a 0 keeps a size.
    folded = body.Reshape(aggregate, body.constant([0, 0, heads, -1], np.int64))
    product = body.Mul(folded, body.Unsqueeze(gate, body.constant([3], np.int64)))
    channels = body.Shape(aggregate, start=2, end=3)
    return body.Reshape(product, body.Concat(body.constant([0, 0], np.int64), channels, axis=0))
