"""What a quantized product computes: the rounding of its activations as ONNX Runtime does it, the rest exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pom_export.graph.quantized.block_weights import FLOAT8
from pom_export.graph.quantized.reading import BLOCKS, FIXED_FLOAT8, TENSOR, QuantizedProduct
from pom_export.parity.tolerances import PRODUCTS_QUANTIZED

_Doubles = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
# A number this close to the middle of two others, relative to itself, may be rounded to either: it has been rounded two
# or three times by then, at 6e-8 each.
_TIE: Final = 5e-7
_LARGEST, _STEPS = np.float32(127), np.float32(255)
_LARGEST_FLOAT8: Final = np.float32(448)


@dataclass(frozen=True)
class Rounded:
    """Activations as a product multiplies them.

    Attributes:
        values: (M, K), the numbers that the rounded activations stand for.
        either: (M, K), by how much each may be larger or smaller, because it was almost in the middle of two integers.
    """

    values: _Doubles
    either: _Doubles


def expected_product(product: QuantizedProduct, given: npt.NDArray[np.float32]) -> tuple[_Doubles, _Doubles]:
    """Return what a product makes of activations, in float64, and how far a right one may be off.

    Args:
        product: the product.
        given: the activations as they reach it: all of a call, since they may share a scale; float32, (M, K).

    Returns:
        The product, (M, N), and the bound on each value's difference from it: PRODUCTS_QUANTIZED, and what activations
        almost in the middle of two integers make of being rounded to either.
    """
    weight = product.weight.dequantized().astype(np.float64)
    rounded = _round(product, given)
    terms = np.abs(weight)
    if product.activations == BLOCKS:
        # Integers are stored without a sign, and what that adds is subtracted from the product, in float32.
        scales = np.abs(np.repeat(product.weight.scales, product.weight.block, axis=0)[: len(weight)])
        terms = terms + scales.astype(np.float64) * (1 << (product.weight.bits - 1))
    bounds = PRODUCTS_QUANTIZED.relative * (np.abs(rounded.values) @ terms) + rounded.either @ np.abs(weight)
    return rounded.values @ weight, bounds


def _round(product: QuantizedProduct, rows: _Singles) -> Rounded:
    if product.activations == BLOCKS:
        return in_blocks(rows, product.weight.block)
    if product.activations == TENSOR:
        return in_tensor(rows)
    if product.activation_scale is not None:
        return with_scale(rows, product.activation_scale, float8=product.activations == FIXED_FLOAT8)
    return Rounded(rows.astype(np.float64), np.zeros(rows.shape))


def in_blocks(rows: _Singles, block: int) -> Rounded:
    """Round activations as MatMulNBits does at accuracy level 4: to -127 to 127 times a scale for each row's block.

    A block's scale is its largest magnitude over 127, and the quotients' reciprocal is computed in float32, as MLAS
    does on x86-64: equal to it for every row count and block size that was tried.

    Args:
        rows: (M, K).
        block: how many neighbours share a scale; the last block may have fewer.
    """
    count, columns = rows.shape
    blocks = -(-columns // block)
    padded = np.zeros((count, blocks * block), np.float32)
    padded[:, :columns] = rows
    parts = padded.reshape(count, blocks, block)
    peaks = np.abs(parts).max(-1, keepdims=True)
    scales = peaks / _LARGEST
    inverse = np.divide(_LARGEST, peaks, out=np.zeros_like(peaks), where=peaks > 0)
    quotients = parts * inverse
    values, either = _either(quotients, np.rint)
    return Rounded(*((each * scales).reshape(padded.shape)[:, :columns] for each in (values, either)))


def in_tensor(rows: _Singles) -> Rounded:
    """Round activations as DynamicQuantizeLinear does: to 0 to 255 less a zero point, with one scale for all.

    Args:
        rows: (M, K), everything that is rounded together.
    """
    low, high = min(np.float32(0), rows.min()), max(np.float32(0), rows.max())
    scale = np.float32(high - low) / _STEPS
    if not scale:
        return Rounded(np.zeros(rows.shape), np.zeros(rows.shape))
    zero = np.rint(np.clip(-low / scale, 0, _STEPS))
    values, either = _either(rows / scale, lambda quotients: np.clip(np.rint(quotients) + zero, 0, _STEPS) - zero)
    return Rounded(values * np.float64(scale), either * np.float64(scale))


def with_scale(rows: _Singles, scale: float, *, float8: bool) -> Rounded:
    """Round activations as QuantizeLinear does with a scale that is known before, and no zero point.

    Args:
        rows: (M, K).
        scale: the scale.
        float8: whether to floating-point numbers of 8 bits (E4M3), else to integers from -128 to 127.
    """
    values, either = _either(rows / np.float32(scale), _to_float8 if float8 else _to_int8)
    return Rounded(values * np.float64(np.float32(scale)), either * np.float64(np.float32(scale)))


def _to_int8(quotients: _Singles) -> _Singles:
    return np.clip(np.rint(quotients), -128, 127)


def _to_float8(quotients: _Singles) -> _Singles:
    return np.clip(quotients, -_LARGEST_FLOAT8, _LARGEST_FLOAT8).astype(FLOAT8).astype(np.float32)


def _either(quotients: _Singles, round_: Callable[[_Singles], _Singles]) -> tuple[_Doubles, _Doubles]:
    """Return rounded numbers, and how far apart those are that they might be rounded to as well."""
    lower, upper = (round_(quotients * np.float32(1 + part)) for part in (-_TIE, _TIE))
    return round_(quotients).astype(np.float64), np.abs(upper - lower).astype(np.float64)
