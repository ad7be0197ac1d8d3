"""Find the weights that the coefficients of a polynomial come from, so that the op gets the very same numbers."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Evaluator, constant_of
from pom_export.graph.fusing.features import Coefficients

# A fitted coefficient is off by less, relative to the largest.
_FIT: Final = 1e-7
_MATRIX: Final = 2


def exact_coefficients(evaluator: Evaluator, h: ir.Value, p: ir.Value, fitted: Array) -> Coefficients:
    """Return the coefficients (C, K) of a polynomial as the graph's weights have them.

    Args:
        evaluator: of the graph.
        h: what the polynomial is of.
        p: its value.
        fitted: the coefficients, with the errors of the fit.
    """
    weights = _weights_between(evaluator, h, p)
    for value, array in weights:
        whole = _whole(array, fitted)
        if whole is not None:
            kept = value if array.ndim == _MATRIX and whole is array else None
            return Coefficients(whole, kept, value.name or "")
    columns = [_column(weights, column) for column in fitted.T]
    dtype = np.result_type(np.float32, *(array.dtype for _, array in weights if array.dtype.name != "bfloat16"))
    return Coefficients(np.stack(columns, 1).astype(np.float32 if dtype == np.float64 else dtype), None, "")


def _weights_between(evaluator: Evaluator, h: ir.Value, p: ir.Value) -> list[tuple[ir.Value, Array]]:
    """Return the floating-point constants that go into p beside h."""
    seen: set[ir.Value] = {h}
    waiting, outside = [p], []
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or not evaluator.depends_on_data(value):
            outside.append(value)
        else:
            waiting.extend(each for each in node.inputs if each is not None)
    constants, _ = evaluator.constants_behind(outside)
    tensors = [(value, constant_of(value)) for value in constants]
    arrays = [(value, tensor.numpy()) for value, tensor in tensors if tensor is not None]
    return [(value, array) for value, array in arrays if array.dtype.kind not in "biu"]


def _whole(array: Array, fitted: Array) -> Array | None:
    """Return a weight as (C, K) if it holds all coefficients; fitted ones may lack the last powers, which are 0."""
    channels, degree = fitted.shape
    if array.size % channels or array.size // channels < degree:
        return None
    powers = array.size // channels
    padded = np.pad(fitted, ((0, 0), (0, powers - degree)))
    shape = [size for size in array.shape if size != 1]
    if shape[-1:] == [powers] or powers == 1:
        shaped = array if array.shape == padded.shape else array.reshape(channels, powers)
        if _close(shaped, padded):
            return shaped
    if shape[:1] == [powers] and array.ndim > 1:
        shaped = np.ascontiguousarray(array.reshape(powers, channels).T)
        if _close(shaped, padded):
            return shaped
    return None


def _column(weights: list[tuple[ir.Value, Array]], fitted: Array) -> Array:
    """Return the coefficients of one power as a weight has them; those of the fit if none does."""
    for _, array in weights:
        if array.size in {1, fitted.size} and _close(np.broadcast_to(array.reshape(-1), fitted.shape), fitted):
            return np.broadcast_to(array.reshape(-1), fitted.shape).astype(np.float32)
    return fitted


def _close(array: Array, fitted: Array) -> bool:
    return bool(np.abs(array.astype(np.float64) - fitted).max() <= _FIT * np.abs(fitted).max())
