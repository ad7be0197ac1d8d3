"""The op as a model-local function of standard ONNX ops: what runs where our kernels are not.

A function body cannot branch on the node's attributes or input types, so each combination that a model uses is
a variant with a body of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from pom_export import contract

_SQRT_HALF = 0.5**0.5


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
    """

    mode: str
    epsilon: float
    degree: int
    x_type: ir.DataType
    coefficient_type: ir.DataType | None
    mask_type: ir.DataType | None = None
    rotation_type: ir.DataType | None = None
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS

    @property
    def inputs(self) -> int:
        """How many inputs the node has: those up to the last present one."""
        if self.rotation_type is not None:
            return len(contract.INPUTS)
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
        return "_".join([self.mode, form, str(self.degree), *typed, *epsilon])


class Body(Tape):
    """Builds the nodes of a function; float32 throughout, so that sums are as accurate as the contract asks.

    `body.Add(a, b)` adds a node of that op type and returns its output.

    Args:
        opset: version of the standard ops.
    """

    def __init__(self, opset: int) -> None:
        super().__init__()
        self.opset = opset

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)
        return lambda *inputs, **attributes: self.op(op_type, inputs, attributes)

    def constant(self, value: float | Sequence[int], dtype: type = np.float32) -> ir.Value:
        """Add a Constant node (functions hold no initializers)."""
        return self.Constant(value=ir.tensor(np.array(value, dtype=dtype)))

    def as_float(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a value of a type as float32."""
        return value if dtype == ir.DataType.FLOAT else self.Cast(value, to=ir.DataType.FLOAT)

    def as_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Return a float32 value as a type."""
        return value if dtype == ir.DataType.FLOAT else self.Cast(value, to=dtype)

    def split(self, value: ir.Value, parts: int) -> Sequence[ir.Value]:
        """Cut the last axis into equal parts."""
        if parts == 1:
            return [value]
        outputs = self.op_multi_out("Split", [value], {"axis": -1, "num_outputs": parts}, num_outputs=parts)
        return list(outputs)

    def gelu(self, x: ir.Value) -> ir.Value:
        """Return x/2 (1 + erf(x / sqrt 2)); the op Gelu itself is younger than the opsets that we support."""
        error = self.Erf(self.Mul(x, self.constant(_SQRT_HALF)))
        return self.Mul(self.Mul(x, self.constant(0.5)), self.Add(error, self.constant(1.0)))

    def products(self, x: ir.Value, degree: int) -> ir.Value:
        """Return the running products of the GELU of x's chunks, (B, N, C)."""
        chunks = list(self.split(self.gelu(x), degree))
        for j in range(1, degree):
            chunks[j] = self.Mul(chunks[j], chunks[j - 1])
        return self.Concat(*chunks, axis=-1) if degree > 1 else chunks[0]

    def rotate(self, p: ir.Value, cos: ir.Value, sin: ir.Value, blocks: int) -> ir.Value:
        """Return p rotated, (B, N, C)."""
        parts, rotated = self.split(p, 2 * blocks), []
        for block, (c, s) in enumerate(zip(self.split(cos, blocks), self.split(sin, blocks), strict=True)):
            first, second = parts[2 * block], parts[2 * block + 1]
            rotated.append(self.Sub(self.Mul(first, c), self.Mul(second, s)))
            rotated.append(self.Add(self.Mul(second, c), self.Mul(first, s)))
        return self.Concat(*rotated, axis=-1)

    def powers(self, x: ir.Value, coefficients: ir.Value, degree: int) -> ir.Value:
        """Return the polynomial by Horner's rule, (B, N, C)."""
        leaky = self.LeakyRelu(x, alpha=contract.LEAKY_SLOPE)
        h = self.Clip(leaky, self.constant(contract.CLAMP_LOW), self.constant(contract.CLAMP_HIGH))
        columns = [self.Gather(coefficients, self.constant(j, np.int64), axis=1) for j in range(degree)]
        total = self.Mul(h, columns[-1])
        for column in reversed(columns[:-1]):
            total = self.Mul(self.Add(total, column), h)
        return total

    def token_count(self, x: ir.Value) -> ir.Value:
        """Return N, int64, as (1)."""
        return self.Shape(x, start=1, end=2)

    def masked(self, p: ir.Value, weights: ir.Value, variant: FunctionVariant) -> ir.Value:
        """Return the weighted (prefix) mean; 0 where the weights sum to 0."""
        axis = self.constant([1], np.int64)
        if variant.mode == "mean":
            # A product with the row of weights sums and weighs in one pass.
            sums = self.MatMul(self.Transpose(weights, perm=[0, 2, 1]), p)
            total = self.ReduceSum(weights, axis, keepdims=1)
        else:
            sums, total = self.CumSum(self.Mul(p, weights), axis), self.CumSum(weights, axis)
        divisor = self.Add(total, self.constant(variant.epsilon)) if variant.epsilon else total
        zero = self.constant(0.0)
        return self.Where(self.Equal(total, zero), zero, self.Div(sums, divisor))

    def unmasked(self, p: ir.Value, x: ir.Value, mode: str) -> ir.Value:
        """Return the (prefix) mean over all tokens."""
        if mode == "mean":
            # A product with a row of ones sums in one fast pass, which ReduceSum over a middle axis is not.
            shape = self.Concat(self.constant([1, 1], np.int64), self.token_count(x), axis=0)
            ones = self.ConstantOfShape(shape, value=ir.tensor(np.ones(1, np.float32)))
            count = self.Max(self.token_count(x), self.constant([1], np.int64))
            return self.Div(self.MatMul(ones, p), self.Cast(count, to=ir.DataType.FLOAT))
        one, last = self.constant(1, np.int64), self.Squeeze(self.token_count(x))
        counts = self.Range(one, self.Add(last, one), one)
        column = self.Unsqueeze(self.Cast(counts, to=ir.DataType.FLOAT), self.constant([1], np.int64))
        return self.Div(self.CumSum(p, self.constant([1], np.int64)), column)


def add_aggregation(body: Body, variant: FunctionVariant, values: Sequence[ir.Value]) -> ir.Value:
    """Add the nodes of an aggregation to a body and return its result, float32.

    Args:
        body: of the function.
        variant: what is added depends on it.
        values: x, coefficients, mask, cos and sin; those that the variant lacks are not looked at.
    """
    x, coefficients, mask, cos, sin = values
    tokens, weights = body.as_float(x, variant.x_type), None
    if variant.mask_type is not None:
        weights = body.Unsqueeze(body.as_float(mask, variant.mask_type), body.constant([2], np.int64))
        absent = body.Equal(weights, body.constant(0.0))
        tokens = body.Where(absent, body.constant(0.0), tokens)
    if variant.coefficient_type is None:
        p = body.products(tokens, variant.degree)
    else:
        p = body.powers(tokens, body.as_float(coefficients, variant.coefficient_type), variant.degree)
    if variant.rotation_type is not None:
        cosines, sines = (body.as_float(table, variant.rotation_type) for table in (cos, sin))
        p = body.rotate(p, cosines, sines, variant.rotary_blocks)
    if variant.mode == "features":
        return p
    return body.unmasked(p, x, variant.mode) if weights is None else body.masked(p, weights, variant)


def make_function(
    body: Body, name: str, inputs: Sequence[ir.Value], output: ir.Value, attributes: Sequence[str], overload: str
) -> ir.Function:
    """Return a body as the function of an op of ours; `body.opset` is the model's."""
    graph = ir.Graph(inputs, [output], nodes=body.nodes, opset_imports={"": body.opset}, name=name)
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
    y = body.as_type(add_aggregation(body, variant, inputs), variant.x_type)
    y.name = contract.OUTPUTS[0]
    return make_function(body, contract.OP_NAME, inputs[: variant.inputs], y, contract.ATTRIBUTES, overload)
