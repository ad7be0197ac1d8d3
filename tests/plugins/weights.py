"""Masks whose weights are at the limits of float32, and what every executor computes with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.parity.tolerances import OPS
from tests.op_reference import exact

Array = npt.NDArray[Any]

TOKENS, CHANNELS = 9, 8
SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
EPSILONS = (0.0, 100 * SMALLEST, 0.25)


def _row(rest: float, **places: float) -> Array:
    weights = np.full(TOKENS, rest, np.float32)
    for place, weight in places.items():
        weights[int(place[1:])] = weight
    return weights


# Rows whose means must be right.
RIGHT = {
    "subnormal": _row(1e-40),
    "smallest": _row(SMALLEST),
    "one smallest": _row(0.0, _4=SMALLEST),
    "subnormal in front": _row(0.7, _0=1e-42, _1=SMALLEST),
    "subnormal behind": _row(1e-43, _0=0.7, _3=0.0),
    "far apart": _row(1e-30, _0=1e-44, _8=1e20),
    "large": _row(1e28),
    "negative": _row(-0.5, _0=2.0, _1=3.0, _2=4.0),
}
# Rows whose means are NaN from a token on.
NOT_A_NUMBER = {
    "infinite": (_row(1.0, _3=np.inf), 3),
    "minus infinite": (_row(1.0, _3=-np.inf), 3),
    "NaN": (_row(1.0, _0=0.0, _5=np.nan), 5),
    "both infinities": (_row(0.0, _2=np.inf, _4=-np.inf), 2),
    "sum beyond float32": (_row(0.0, _1=2e38, _2=3e38), 1),
}


def feeds(row: Array) -> dict[str, Array]:
    """Return x, coefficients, and a batch's mask: the given row and one of ones."""
    random = np.random.default_rng(3)
    return {
        "x": random.standard_normal((2, TOKENS, CHANNELS)).astype(np.float32),
        "coefficients": random.standard_normal((CHANNELS, 3)).astype(np.float32),
        "mask": np.stack([row, np.ones(TOKENS, np.float32)]),
    }


def check_right(y: Array, given: dict[str, Array], mode: str, epsilon: float) -> None:
    """Compare with float64, whose range holds every sum of float32 values."""
    expected = exact(given, {"mode": mode, "epsilon": epsilon}).y
    tolerance = OPS["float32"]
    assert np.isfinite(expected).all()
    assert (abs(y - expected) <= tolerance.absolute + tolerance.relative * abs(expected).max()).all()


def check_not_a_number(y: Array, first: int, mode: str) -> None:
    """Check that the row's means are NaN from the token `first` on, and that nothing else is."""
    expected = np.zeros(y.shape, bool)
    expected[0, 0 if mode == "mean" else first :] = True
    assert np.array_equal(np.isnan(y), expected)
    assert np.isfinite(y[~expected]).all()
