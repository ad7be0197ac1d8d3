"""The op as a model-local function of standard ONNX ops: what runs where our kernels are not.

A function body cannot branch on the node's attributes or input types, so each combination that a model uses is
a variant with a body of its own.
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
    """What one function body depends on: the node's attributes and inputs.

    Attributes:
        mode: the node's.
        epsilon: the node's.
        degree: K.
        x_type: type of x.
        coefficient_type: type of the coefficients; None: form "product".
        mask_type: type of the mask; None: no mask, or a placeholder.
        rotation_type: type of cos and sin; None: no rotation.
        rotary_blocks: the node's, 1 without a rotation.
        stateful: the node's.
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
        """How many inputs the node has: those up to the last present one."""
        if self.stateful:
            return len(contract.INPUTS)
        if self.rotation_type is not None:
            return len(contract.INPUTS) - len(contract.STATE_INPUTS)
        return contract.REQUIRED_INPUTS + (self.mask_type is not None)

    @property
    def overload(self) -> str:
        """A name for the variant, for models that use several."""
        form = contract.PRODUCT if self.coefficient_type is None else contract.POWER
        types = {
            "": self.x_type,
            "coefficients_": self.coefficient_type,
            "mask_": self.mask_type,
            f"rotary_{self.rotary_blocks}_": self.rotation_type,
        }
        typed = [prefix + kind.name.lower() for prefix, kind in types.items() if kind is not None]
        epsilon = [f"epsilon_{self.epsilon!r}"] if self.epsilon else []
        stateful = ["stateful"] if self.stateful else []
        return "_".join([self.mode, form, str(self.degree), *typed, *epsilon, *stateful])


def add_aggregation(body: Body, variant: FunctionVariant, values: Sequence[ir.Value]) -> list[ir.Value]:
    """Add the nodes of an aggregation to a body and return its results: y in float32, and the present if it has one.

    Args:
        body: of the function.
        variant: what is added depends on it.
        values: the op's inputs; those that the variant lacks are not looked at.
    """
    x, coefficients, mask, cos, sin, past_state, past_length = values
    tokens, weights = body.as_float(x, variant.x_type), None
    if variant.mask_type is not None:
        flat = body.as_float(mask, variant.mask_type)
        if variant.mask_type != ir.DataType.BOOL:
            # In front of the Unsqueeze: ONNX Runtime would move a factor behind a product that it is right in front of.
            flat = body.Mul(flat, body.constant(contract.WEIGHT_SCALE))
        weights = body.Unsqueeze(flat, body.constant([2], np.int64))
        absent = body.Equal(weights, body.constant(0.0))
        tokens = body.Where(absent, body.constant(0.0), tokens)
    if variant.coefficient_type is None:
        p = body.products(tokens, variant.degree)
    else:
        p = body.powers(tokens, body.as_float(coefficients, variant.coefficient_type), variant.degree)
    if variant.rotation_type is not None:
        cosines, sines = (body.as_float(table, variant.rotation_type) for table in (cos, sin))
        p = body.rotate(p, cosines, sines, variant.rotary_blocks)
    if variant.stateful:
        counted = None if weights is None else mask
        return add_streaming(body, p, x, counted, Past(past_state, past_length), variant.mode, variant.epsilon)
    if variant.mode == "features":
        return [p]
    if weights is None:
        return [body.unmasked(p, x, variant.mode)]
    if variant.mask_type == ir.DataType.BOOL:
        return [body.masked(p, weights, variant.mode, variant.epsilon)]
    return [body.masked(p, weights, variant.mode, variant.epsilon * contract.WEIGHT_SCALE, limited=True)]


def make_function(
    body: Body,
    name: str,
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    attributes: Sequence[str],
    overload: str,
) -> ir.Function:
    """Return a body as the function of an op of ours; `body.opset` is the model's."""
    graph = ir.Graph(inputs, outputs, nodes=body.nodes, opset_imports={"": body.opset}, name=name)
    declared = [ir.Attr(attribute, ir.AttributeType.UNDEFINED, None) for attribute in attributes]
    return ir.Function(contract.DOMAIN, name, overload, graph=graph, attributes=declared)


def build_function(variant: FunctionVariant, opset: int, overload: str = "") -> ir.Function:
    """Return the function that computes the op for one variant.

    Args:
        variant: what the body depends on.
        opset: version of the standard ops; it must be the model's.
        overload: the overload that nodes of this variant name; "" for the only or first one.
    """
    body, inputs = Body(opset), [ir.Value(name=name) for name in contract.INPUTS]
    y, *present = add_aggregation(body, variant, inputs)
    outputs = name_outputs([body.as_type(y, variant.x_type), *present], contract.OUTPUTS)
    return make_function(body, contract.OP_NAME, inputs[: variant.inputs], outputs, contract.ATTRIBUTES, overload)


def name_outputs(values: list[ir.Value], names: Sequence[str]) -> list[ir.Value]:
    """Give a function's outputs the names that the op has for them."""
    for value, name in zip(values, names, strict=False):
        value.name = name
    return values
