"""How far two arrays are from each other, in float64 and in pieces: no copy of a large output is made."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_PIECE: Final = 2**20


@dataclass
class Measure:
    """What was found where the reference is finite.

    Attributes:
        count: how many numbers that are.
        odd: whether NaN or an infinity is on one side alone, or another one on each.
        max_abs: the largest |a - b|.
        magnitude: the largest |b|, b being the reference.
        squares: the sums of squares of a - b, a and b.
        product: the sum of a b.
    """

    count: int = 0
    odd: bool = False
    max_abs: float = 0.0
    magnitude: float = 0.0
    squares: tuple[float, float, float] = (0.0, 0.0, 0.0)
    product: float = 0.0

    @property
    def rms(self) -> float:
        """The root of the mean of (a - b)^2."""
        return math.sqrt(self.squares[0] / self.count) if self.count else 0.0

    @property
    def reference_rms(self) -> float:
        """The root of the mean of b^2."""
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
        reference: what it should be.
        partial: whether it may be anything where the reference is not finite.
    """
    found = Measure()
    for a, b in _pieces(actual, reference):
        finite = np.isfinite(b)
        if not finite.all():
            found.odd |= not partial and not np.array_equal(a[~finite], b[~finite], equal_nan=True)
            a, b = a[finite], b[finite]
        if not b.size:
            continue
        found.count += b.size
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


def _pieces(actual: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    a, b = actual.reshape(-1), reference.reshape(-1)
    for start in range(0, a.size, _PIECE):
        piece = slice(start, start + _PIECE)
        yield a[piece].astype(np.float64), b[piece].astype(np.float64)
