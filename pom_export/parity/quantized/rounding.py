"""What a quantized product computes: the rounding of its activations as ONNX Runtime does it, the rest exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pom_export.graph.quantized.reading import BLOCKS, TENSOR, QuantizedProduct
from pom_export.parity.tolerances import PRODUCTS_QUANTIZED

_Doubles = npt.NDArray[np.float64]
_Singles = npt.NDArray[np.float32]
# A number this close to the middle of two integers, relative to itself, may be rounded to either: its quotient has been
# rounded two or three times by then, at 6e-8 each.
_TIE: Final = 5e-7
_LARGEST, _STEPS = np.float32(127), np.float32(255)


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
    padded = np.zeros((count, -(-columns // block) * block), np.float32)
    padded[:, :columns] = rows
    parts = padded.reshape(count, -1, block)
    peaks = np.abs(parts).max(-1, keepdims=True)
    scales = peaks / _LARGEST
    inverse = np.divide(_LARGEST, peaks, out=np.zeros_like(peaks), where=peaks > 0)
    quotients = parts * inverse
    values, either = _nearest(quotients), _ties(quotients)
    return Rounded(*((each * scales).reshape(count, -1)[:, :columns] for each in (values, either)))


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
    quotients = rows / scale
    values = np.clip(_nearest(quotients) + zero, 0, _STEPS) - zero
    return Rounded(values * np.float64(scale), _ties(quotients) * np.float64(scale))


def _nearest(quotients: _Singles) -> _Doubles:
    return np.rint(quotients).astype(np.float64)


def _ties(quotients: _Singles) -> _Doubles:
    wide = quotients.astype(np.float64)
    distance = np.abs(np.abs(wide - np.trunc(wide)) - 0.5)
    return (distance <= _TIE * np.maximum(np.abs(wide), 1)).astype(np.float64)
