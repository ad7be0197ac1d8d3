"""Rules for the standard ops: which need float32 in a half-precision graph, and which follow their inputs.

Ops in neither list (products, convolutions, look-ups, fused norms, which use float32 internally) compute in half.
"""

from __future__ import annotations

import functools
from typing import Final

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

# Ops that take angles.
ANGLES: Final = frozenset(("Cos", "Sin", "Tan"))
# Ops whose results exceed a half type's range, or lose their meaning in its 8 or 11 bits, even though what is computed
# from them fits: squares, sums over many values, exponentials, angles; and explicit casts.
RANGE_HUNGRY: Final = frozenset((
    "BatchNormalization", "Cast", "Cos", "CumSum", "Exp", "GroupNormalization", "InstanceNormalization", "Log",
    "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Pow", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Sin", "Softmax",
    "Softplus", "Sqrt", "Tan",
))  # fmt: skip
# Ops that compute in float32 as soon as one input is float32, as in PyTorch.
PROMOTING: Final = frozenset((
    "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Mul", "Sub",
))  # fmt: skip
# Ops that only move values, or whose results are no larger than their inputs together.
_MOVING: Final = frozenset((
    "Abs", "Add", "Concat", "Expand", "Flatten", "Identity", "LeakyRelu", "Max", "Min", "Neg", "Pad", "PRelu",
    "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
))  # fmt: skip
_BOUNDED: Final = frozenset((
    "Ceil", "Clip", "Elu", "Erf", "Floor", "Gelu", "HardSigmoid", "HardSwish", "IsInf", "IsNaN", "Round", "Sigmoid",
    "Sign", "Tanh",
))  # fmt: skip
# Ops that compute in float32 if all inputs are float32. A sum of a float32 and a half value is a residual, and half.
FOLLOWING: Final = _MOVING | _BOUNDED
# Ops that keep large values large.
SPREADING: Final = _MOVING | {"Div", "Mul", "Sub"}


def is_float(value: ir.Value | None) -> bool:
    """Return whether a value is float32, so that a half-precision graph could have it in half precision."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def reads_any(node: ir.Node) -> bool:
    """Return whether a node accepts floats of any type, because it only reads the shape or converts the value."""
    return node.op_type in {"Shape", "Size"} or (node.op_type == "Cast" and not is_float(node.outputs[0]))


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is a weight or another constant of the graph."""
    return value.is_initializer() and value.const_value is not None


def largest(dtype: ir.DataType) -> float:
    """Return the largest number of a type."""
    return float(ml_dtypes.finfo(dtype.numpy()).max)


def fits(value: ir.Value, dtype: ir.DataType) -> bool:
    """Return whether a constant keeps its meaning in a half type, neither becoming infinite nor losing its digits."""
    assert value.const_value is not None
    magnitudes = np.abs(value.const_value.numpy())
    peak = float(magnitudes[np.isfinite(magnitudes)].max(initial=0.0))
    return peak == 0 or float(ml_dtypes.finfo(dtype.numpy()).smallest_normal) <= peak <= largest(dtype)


def takes(node: ir.Node, opset: int, dtype: ir.DataType) -> bool:
    """Return whether a standard op supports a half type; ops of other domains are assumed not to."""
    if node.domain or not _schema_exists(node.op_type, opset):
        return False
    inputs = [index for index, value in enumerate(node.inputs) if is_float(value)]
    outputs = [index for index, value in enumerate(node.outputs) if is_float(value)]
    takes_any = any(takes_input(node, opset, index, dtype) for index in inputs)
    return takes_any and all(_allows(node.op_type, opset, "outputs", index, dtype) for index in outputs)


def takes_input(node: ir.Node, opset: int, index: int, dtype: ir.DataType) -> bool:
    """Return whether an input of a standard op may have a type; the scales of Resize, for example, may not."""
    return _allows(node.op_type, opset, "inputs", index, dtype)


@functools.cache
def _schema_exists(op_type: str, opset: int) -> bool:
    return bool(onnx.defs.has(op_type, opset, ""))


@functools.cache
def _allows(op_type: str, opset: int, side: str, index: int, dtype: ir.DataType) -> bool:
    schema = onnx.defs.get_schema(op_type, opset, "")
    parameters = getattr(schema, side)
    kind = parameters[min(index, len(parameters) - 1)].type_str  # the last one may be variadic
    allowed = next((one.allowed_type_strs for one in schema.type_constraints if one.type_param_str == kind), [kind])
    return f"tensor({dtype.name.lower()})" in allowed
