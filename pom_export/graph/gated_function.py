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
    """What one body of the gated op depends on.

    Attributes:
        aggregation: the variant of the aggregation in it.
        activation: of the gate.
        bias_type: type of the gate's bias.
        heads: S where a gate value serves several channels; None: one gate a channel.
    """

    aggregation: FunctionVariant
    activation: str
    bias_type: ir.DataType
    heads: int | None = None


def build_gated_function(variant: GatedVariant, opset: int, name: str = contract.GATED_OP_NAME) -> ir.Function:
    """Return the function that computes the gated op for one variant.

    It repeats the aggregation's body: a node of the plain op inside would reach no kernel, since neither TensorRT nor
    ONNX Runtime looks for one there.

    Args:
        variant: what the body depends on.
        opset: version of the standard ops; it must be the model's.
        name: the name of the op that nodes of this variant have.
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
    """Return the gate (B, T, S) over the aggregate (B, 1 or T, C), (B, T, C)."""
    if heads is None:
        return body.Mul(gate, aggregate)
    # (B, ., S, C / S) times (B, T, S, 1); a 0 keeps a size.
    folded = body.Reshape(aggregate, body.constant([0, 0, heads, -1], np.int64))
    product = body.Mul(folded, body.Unsqueeze(gate, body.constant([3], np.int64)))
    channels = body.Shape(aggregate, start=2, end=3)
    return body.Reshape(product, body.Concat(body.constant([0, 0], np.int64), channels, axis=0))
