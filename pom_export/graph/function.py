"""Write the op as a model-local function of standard ONNX ops, for runtimes without our kernels.

A function body cannot branch on the node's attributes or input types, so each combination that a model uses is
a variant with its own body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.function_body import Body
from pom_export.graph.function_streaming import Past, add_streaming


@dataclass(frozen=True)
class FunctionVariant:
    """The attributes and inputs of a node that a function body depends on.

    Attributes:
        mode: the node's mode.
        epsilon: the node's epsilon.
        degree: K.
        x_type: type of x.
        coefficient_type: type of the coefficients; None: form "product".
        mask_type: type of the mask; None: no mask, or a placeholder.
        rotation_type: type of cos and sin; None: no rotation.
        rotary_blocks: the node's number of rotary blocks; 1 without a rotation.
        stateful: whether the node is stateful.
    """

    mode: str
    epsilon: float
    degree: int
    x_type: ir.DataType
    coefficient_type: ir.DataType | None
    mask_type: ir.DataType | None = None
    rotation_type: ir.DataType | None = None
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS
    stateful: bool = False

    @property
    def inputs(self) -> int:
        """The number of inputs of the node, up to the last one that is present."""
        if self.stateful:
            return len(contract.INPUTS)
        if self.rotation_type is not None:
            return len(contract.INPUTS) - len(contract.STATE_INPUTS)
        return contract.REQUIRED_INPUTS + (self.mask_type is not None)

    @property
    def placeholders(self) -> list[int]:
        """Indices of the inputs that are placeholders for absent ones."""
        types = (self.x_type, self.coefficient_type, self.mask_type, self.rotation_type, self.rotation_type)
        return [index for index, kind in enumerate(types[: self.inputs]) if kind is None]


def add_aggregation(body: Body, variant: FunctionVariant, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Add the nodes of an aggregation to a body and return its results: y in float32 and, if stateful, the present.

    Args:
        body: the function's body.
        variant: determines what is added.
        values: the op's inputs; those that the variant lacks are ignored.
    """
    x, coefficients, mask, cos, sin, past_state, past_length = values
    tokens, weights = _counting(body, variant, x, mask)
    unit = body.unit([values[index] for index in variant.placeholders])
    if variant.coefficient_type is None:
        p = body.products(tokens, variant.degree, unit)
    else:
        factors = body.as_float(coefficients, variant.coefficient_type)
        p = body.powers(tokens, body.Mul(factors, unit) if variant.placeholders else factors, variant.degree)
    if variant.rotation_type is not None:
        cosines, sines = (body.as_float(table, variant.rotation_type) for table in (cos, sin))
        p = body.rotate(p, cosines, sines, variant.rotary_blocks)
    if variant.stateful:
        counted = None if variant.mask_type is None else mask
        return add_streaming(body, p, x, counted, Past(past_state, past_length), variant.mode, variant.epsilon)
    if variant.mode == "features":
        return [p]
    if variant.mask_type is None:
        return [body.unmasked(p, x, variant.mode)]
    if weights is None:
        return [body.masked(p, x, mask, variant.mode, variant.epsilon)]
    return [body.weighted(p, weights, variant.mode, variant.epsilon * contract.WEIGHT_SCALE)]


def _counting(body: Body, variant: FunctionVariant, x: ir.Value, mask: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """Return the tokens in float32, 0 where masked, and the weights (B or 1, N, 1) of a floating-point mask."""
    tokens = body.as_float(x, variant.x_type)
    if variant.mask_type is None:
        return tokens, None
    zero, axis = body.constant(0.0), body.constant([2], np.int64)
    if variant.mask_type == ir.DataType.BOOL:
        return body.Where(body.Unsqueeze(mask, axis), tokens, zero), None
    # Scaled before the Unsqueeze, because ONNX Runtime would move a factor that directly precedes a product behind it.
    scaled = body.Mul(body.as_float(mask, variant.mask_type), body.constant(contract.WEIGHT_SCALE))
    weights = body.Unsqueeze(scaled, axis)
    return body.Where(body.Equal(weights, zero), zero, tokens), weights


def make_function(
    body: Body,
    name: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    attributes: Sequence[str],
) -> ir.Function:
    """Make a function for one of our ops from its body; `body.opset` is the model's."""
    graph = ir.Graph(inputs, outputs, nodes=body.nodes, opset_imports={"": body.opset}, name=name)
    declared = [ir.Attr(attribute, ir.AttributeType.UNDEFINED, None) for attribute in attributes]
    return ir.Function(contract.DOMAIN, name, graph=graph, attributes=declared)


def build_function(variant: FunctionVariant, opset: int, name: str = contract.OP_NAME) -> ir.Function:
    """Build the function that computes the op for one variant.

    Args:
        variant: determines the body.
        opset: version of the standard ops; it must be the model's.
        name: name of the op in nodes of this variant.
    """
    body, inputs = Body(opset), [ir.Value(name=given) for given in contract.INPUTS]
    y, *present = add_aggregation(body, variant, inputs)
    outputs = name_outputs([body.as_type(y, variant.x_type), *present], contract.OUTPUTS)
    return make_function(body, name, inputs[: variant.inputs], outputs, contract.ATTRIBUTES)


def name_outputs(values: list[ir.Value], names: Sequence[str]) -> list[ir.Value]:
    """Name a function's outputs as the op does."""
    for value, name in zip(values, names, strict=False):
        value.name = name
    return values
