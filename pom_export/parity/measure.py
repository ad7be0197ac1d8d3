"""Measure the difference of two arrays in float64, in pieces, without copying a large output."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_PIECE: Final = 2**20
# A number counts as far beyond the others if it is larger by this factor, provided there are this many others, so that
# they are not small by chance. Numbers within this relative distance of it count as equal to it: -1e9 is added to
# logits, or replaces them.
_FAR, _ENOUGH, _ALIKE = 100.0, 16, 1e-3


@dataclass
class Measure:
    """Measurements where the reference is finite; a are the actual values, b the reference's.

    Attributes:
        count: number of finite values in the reference.
        odd: whether NaN or infinity is only in one of the two, or the two have different ones.
        max_abs: the largest |a - b|.
        magnitude: the largest |b|.
        low: the smallest b.
        high: the largest b.
        nan: number of values that are NaN in the reference, and therefore not compared.
        squares: the sums of squares of a - b, a and b.
        product: the sum of a b.
    """

    count: int = 0
    odd: bool = False
    max_abs: float = 0.0
    magnitude: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    product: float = 0.0

    @property
    def constant(self) -> float | None:
        """The reference's value if it has at least two, all equal; else None."""
        return self.low if self.low == self.high and self.count > 1 else None

    @property
    def rms(self) -> float:
        """The root mean square of a - b."""
        return math.sqrt(self.squares[0] / self.count) if self.count else 0.0

    @property
    def reference_rms(self) -> float:
        """The root mean square of b."""
        return math.sqrt(self.squares[2] / self.count) if self.count else 0.0

    @property
    def cosine(self) -> float:
        """The cosine similarity."""
        norm = math.sqrt(self.squares[1]) * math.sqrt(self.squares[2])
        return self.product / norm if norm else float(self.max_abs == 0.0)


def measure(actual: Array, reference: Array, *, partial: bool = False) -> Measure:
    """Measure an array against a reference of the same shape.

    Args:
        actual: the array.
        reference: the expected array.
        partial: whether values may be anything where the reference is not finite.
    """
    found = Measure()
    for a, b in _pieces(actual, reference):
        finite = np.isfinite(b)
        if not finite.all():
            found.odd |= not partial and not np.array_equal(a[~finite], b[~finite], equal_nan=True)
            found.nan += int(np.isnan(b).sum())
            a, b = a[finite], b[finite]
        if not b.size:
            continue
        found.count += b.size
        found.low, found.high = min(found.low, float(b.min())), max(found.high, float(b.max()))
        found.odd |= not np.isfinite(a).all()
        if found.odd:
            continue
        error = a - b
        found.max_abs = max(found.max_abs, float(np.abs(error).max()))
        found.magnitude = max(found.magnitude, float(np.abs(b).max()))
        sums = (float(part @ part) for part in (error, a, b))
        found.squares = tuple(old + new for old, new in zip(found.squares, sums, strict=True))  # type: ignore[assignment]
        found.product += float(a @ b)
    return found


def sentinels(reference: Array) -> Array | None:
    """Find the numbers in a reference that are far beyond all others, such as the -1e9 of masked logits.

    On the scale of such a number, the others have no significant digits.

    Args:
        reference: the expected outputs, of any shape.

    Returns:
        A boolean mask of the reference's shape; None if there is no such number.
    """
    if reference.dtype.kind != "f" or reference.size < _ENOUGH:
        return None
    highest = max(float(piece.max()) for piece in _magnitudes(reference))
    least = highest * (1 - _ALIKE)
    others = max(float(piece.max(initial=0.0, where=piece < least)) for piece in _magnitudes(reference))
    if not 0.0 < others * _FAR < highest:
        return None
    found = np.isfinite(reference) & (np.abs(reference) >= least)
    return found if reference.size - int(found.sum()) >= _ENOUGH else None


def _magnitudes(array: Array) -> Iterator[Array]:
    """Yield |b| in pieces, with 0 where b is not finite."""
    for piece, _ in _pieces(array, array):
        yield np.where(np.isfinite(piece), np.abs(piece), 0.0)


def _pieces(actual: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    a, b = actual.reshape(-1), reference.reshape(-1)
    for start in range(0, a.size, _PIECE):
        piece = slice(start, start + _PIECE)
        yield a[piece].astype(np.float64), b[piece].astype(np.float64)
