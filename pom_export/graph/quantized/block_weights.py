"""Matrices of integers or 8-bit floats with scales, as quantized products hold them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt

FLOAT8: Final = np.dtype(ml_dtypes.float8_e4m3fn)
"""E4M3: 4 bits of exponent, 3 of mantissa, no infinity; up to 448."""
LARGEST_FLOAT8: Final = 448.0
LARGEST: Final = {4: 7, 8: 127}
"""The largest integer by bits; the smallest is one below its negative."""
_EIGHT: Final = 8


@dataclass(frozen=True)
class QuantizedWeight:
    """The weight of a product y = x @ W, with x (..., K) and W (K, N), as small numbers that share scales.

    Attributes:
        values: the integers, int8, or numbers of type FLOAT8; (K, N).
        scales: float32, (ceil(K / block), N); row i belongs to rows i * block to (i + 1) * block - 1 of the values.
        bits: 4 or 8.
        block: how many rows share a scale; K for one scale per column.
    """

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float32]
    bits: int
    block: int

    def __post_init__(self) -> None:
        """Check the shapes, of which everything that packs or multiplies is sure afterwards."""
        rows, columns = self.values.shape
        assert self.scales.shape == (math.ceil(rows / self.block), columns), (self.scales.shape, self.values.shape)

    @property
    def type(self) -> str:
        """The values' type: "int8", "int4" or "fp8"."""
        return "fp8" if self.values.dtype == FLOAT8 else f"int{self.bits}"

    @property
    def nbytes(self) -> int:
        """How many bytes a file holds of it."""
        return self.values.size * self.bits // _EIGHT + self.scales.nbytes

    def dequantized(self) -> npt.NDArray[np.float32]:
        """Return the numbers that the values stand for: each times its scale, rounded to float32; (K, N)."""
        scales = np.repeat(self.scales, self.block, axis=0)[: len(self.values)]
        numbers: npt.NDArray[np.float32] = self.values.astype(np.float32) * scales
        return numbers


def pack_blocks(weight: QuantizedWeight) -> npt.NDArray[np.uint8]:
    """Return a weight's integers in the layout of ONNX Runtime's MatMulNBits: (N, blocks, bytes of a block).

    Each integer is stored as itself plus half the range; of two 4-bit integers, the first is in the low bits. The last
    block is filled with zeros. Source: `docs/ContribOperators.md` of ONNX Runtime.
    """
    rows, columns = weight.values.shape
    blocks = len(weight.scales)
    zero = 1 << (weight.bits - 1)
    stored = np.full((columns, blocks * weight.block), zero, np.uint8)
    stored[:, :rows] = (weight.values.T.astype(np.int16) + zero).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = stored.reshape(columns, blocks, weight.block)
    return packed if weight.bits == _EIGHT else packed[..., ::2] | packed[..., 1::2] << np.uint8(4)


def unpack_blocks(
    packed: npt.NDArray[Any], scales: npt.NDArray[Any], rows: int, bits: int, block: int
) -> QuantizedWeight:
    """Return the weight that MatMulNBits holds without zero points; the inverse of `pack_blocks`.

    Args:
        packed: uint8, (N, blocks, bytes of a block).
        scales: of any shape with N * blocks values, the blocks of a column side by side.
        rows: K.
        bits: 4 or 8.
        block: rows that share a scale.
    """
    columns, blocks, _ = packed.shape
    values = packed
    if bits != _EIGHT:
        values = np.stack([packed & 0xF, packed >> 4], axis=-1)
    values = values.reshape(columns, -1)[:, :rows].astype(np.int16) - (1 << (bits - 1))
    by_column = np.asarray(scales, np.float32).reshape(columns, blocks)
    return QuantizedWeight(
        np.ascontiguousarray(values.T.astype(np.int8)), np.ascontiguousarray(by_column.T), bits, block
    )
