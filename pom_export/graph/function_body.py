"""Building blocks for the functions of standard ONNX ops that define our ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from pom_export import contract

_SQRT_HALF = 0.5**0.5
_SPLIT_NAMES_PARTS = 18
_LARGEST = float(np.finfo(np.float32).max)


class Body(Tape):
    """Builds the nodes of a function, all in float32 so that sums are as accurate as the contract requires.

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
        """Add a Constant node, since functions have no initializers."""
        return self.Constant(value=ir.tensor(np.array(value, dtype=dtype)))

    def as_float(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Convert a value of type `dtype` to float32."""
        return value if dtype == ir.DataType.FLOAT else self.Cast(value, to=ir.DataType.FLOAT)

    def as_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Convert a float32 value to type `dtype`."""
        return value if dtype == ir.DataType.FLOAT else self.Cast(value, to=dtype)

    def split(self, value: ir.Value, parts: int, axis: int = -1) -> Sequence[ir.Value]:
        """Split an axis, by default the last, into equal parts."""
        if parts == 1:
            return [value]
        # Before this opset, the parts are equal if nothing is said.
        equal = {"num_outputs": parts} if self.opset >= _SPLIT_NAMES_PARTS else {}
        return list(self.op_multi_out("Split", [value], {"axis": axis, **equal}, num_outputs=parts))

    def cumulative(self, value: ir.Value) -> ir.Value:
        """Return the running sums over the tokens of a (B, N) or (B, N, C) value."""
        # A 0-D axis, as the standard requires; both flags, because some tools take a missing flag for 1.
        return self.CumSum(value, self.constant(1, np.int64), exclusive=0, reverse=0)

    def unit(self, placeholders: Sequence[ir.Value]) -> ir.Value:
        """Return the float32 value 1, shaped (1), computed from the sizes of placeholders if there are any.

        Multiplying by it makes use of the placeholders. Tools delete inputs that a body does not use, but not the
        corresponding arguments of the node.
        """
        if not placeholders:
            return self.constant([1])
        size, *others = (self.Shape(placeholder) for placeholder in placeholders)
        for other in others:
            size = self.Mul(size, other)
        return self.Cast(size, to=ir.DataType.FLOAT)

    def gelu(self, x: ir.Value, unit: ir.Value) -> ir.Value:
        """Return x/2 (unit + erf(x / sqrt 2)); the op Gelu is newer than the oldest opset that we support."""
        error = self.Erf(self.Mul(x, self.constant(_SQRT_HALF)))
        return self.Mul(self.Mul(x, self.constant(0.5)), self.Add(error, unit))

    def products(self, x: ir.Value, degree: int, unit: ir.Value) -> ir.Value:
        """Return the running products of the GELU of x's chunks, (B, N, C); `unit` is 1."""
        chunks = list(self.split(self.gelu(x, unit), degree))
        for j in range(1, degree):
            chunks[j] = self.Mul(chunks[j], chunks[j - 1])
        return self.Concat(*chunks, axis=-1) if degree > 1 else chunks[0]

    def rotate(self, p: ir.Value, cos: ir.Value, sin: ir.Value, blocks: int) -> ir.Value:
        """Rotate p, (B, N, C)."""
        parts, rotated = self.split(p, 2 * blocks), []
        for block, (c, s) in enumerate(zip(self.split(cos, blocks), self.split(sin, blocks), strict=True)):
            first, second = parts[2 * block], parts[2 * block + 1]
            rotated.append(self.Sub(self.Mul(first, c), self.Mul(second, s)))
            rotated.append(self.Add(self.Mul(second, c), self.Mul(first, s)))
        return self.Concat(*rotated, axis=-1)

    def powers(self, x: ir.Value, coefficients: ir.Value, degree: int) -> ir.Value:
        """Evaluate the polynomial by Horner's rule, (B, N, C)."""
        leaky = self.LeakyRelu(x, alpha=contract.LEAKY_SLOPE)
        h = self.Clip(leaky, self.constant(contract.CLAMP_LOW), self.constant(contract.CLAMP_HIGH))
        columns = [self.Gather(coefficients, self.constant(j, np.int64), axis=1) for j in range(degree)]
        total = self.Mul(h, columns[-1])
        for column in reversed(columns[:-1]):
            total = self.Mul(self.Add(total, column), h)
        return total

    def token_count(self, x: ir.Value) -> ir.Value:
        """Return N as an int64 of shape (1)."""
        return self.Shape(x, start=1, end=2)

    def weighted(self, p: ir.Value, weights: ir.Value, mode: str, epsilon: float) -> ir.Value:
        """Return the (prefix) mean with weights (B or 1, N, 1): 0 if they sum to 0, NaN if the divisor is too large."""
        if mode == "mean":
            # Multiplying by the row of weights computes the weighted sum in a single pass.
            sums = self.MatMul(self.Transpose(weights, perm=[0, 2, 1]), p)
            total = self.ReduceSum(weights, self.constant([1], np.int64), keepdims=1)
        else:
            sums, total = self.cumulative(self.Mul(p, weights)), self.cumulative(weights)
        divisor = self.Add(total, self.constant(min(epsilon, _LARGEST))) if epsilon else total
        fits = self.LessOrEqual(self.Abs(divisor), self.constant(contract.DIVISOR_LIMIT))
        return self.ratio(sums, total, self.Where(fits, divisor, self.constant(np.nan)))

    def masked(self, p: ir.Value, x: ir.Value, mask: ir.Value, mode: str, epsilon: float) -> ir.Value:
        """Return the (prefix) mean over the tokens that a bool mask (B or 1, N) keeps; p is 0 for the others."""
        sums = self.token_sum(p, x) if mode == "mean" else self.cumulative(p)
        counts = self.Cast(self.kept_counts(mask, mode), to=ir.DataType.FLOAT)
        total = self.Unsqueeze(counts, self.constant([2], np.int64))
        return self.ratio(sums, total, self.Add(total, self.constant(epsilon)) if epsilon else total)

    def kept_counts(self, mask: ir.Value, mode: str) -> ir.Value:
        """Return how many tokens a bool mask (B or 1, N) keeps, int64: (B or 1, 1), or (B or 1, N) up to each token.

        Integers, because float32 cannot count beyond 2^24.
        """
        flags = self.Cast(mask, to=ir.DataType.INT64)
        return (
            self.cumulative(flags)
            if mode == "causal"
            else self.ReduceSum(flags, self.constant([1], np.int64), keepdims=1)
        )

    def ratio(self, sums: ir.Value, total: ir.Value, divisor: ir.Value) -> ir.Value:
        """Return sums / divisor, or 0 where the total is 0."""
        zero = self.constant(0.0)
        return self.Where(self.Equal(total, zero), zero, self.Div(sums, divisor))

    def unmasked(self, p: ir.Value, x: ir.Value, mode: str) -> ir.Value:
        """Return the (prefix) mean over all tokens."""
        if mode == "mean":
            count = self.Max(self.token_count(x), self.constant([1], np.int64))
            return self.Div(self.token_sum(p, x), self.Cast(count, to=ir.DataType.FLOAT))
        counts = self.Cast(self.token_numbers(x), to=ir.DataType.FLOAT)
        column = self.Unsqueeze(counts, self.constant([1], np.int64))
        return self.Div(self.cumulative(p), column)

    def token_sum(self, p: ir.Value, x: ir.Value) -> ir.Value:
        """Return the sum of p, (B, 1, C)."""
        # Multiplying by a row of ones takes a single fast pass, unlike ReduceSum over a middle axis.
        shape = self.Concat(self.constant([1, 1], np.int64), self.token_count(x), axis=0)
        ones = self.ConstantOfShape(shape, value=ir.tensor(np.ones(1, np.float32)))
        return self.MatMul(ones, p)

    def token_numbers(self, x: ir.Value) -> ir.Value:
        """Return 1, 2, ..., N as an int64 of shape (N)."""
        one, last = self.constant(1, np.int64), self.Squeeze(self.token_count(x))
        return self.Range(one, self.Add(last, one), one)
