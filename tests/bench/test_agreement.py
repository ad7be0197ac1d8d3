"""Backends that are timed side by side must be seen to agree: on numbers, and on all outputs."""

from __future__ import annotations

import numpy as np
import pytest

from pom_export.bench.measuring import compare
from pom_export.errors import ParityError

GOOD = np.array([[1.0, -2.0]], np.float32)


def test_the_largest_difference_is_told() -> None:
    assert compare("a", [GOOD, GOOD + 1e-3], "b", [GOOD, GOOD]) == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("outputs", "expected", "message"),
    [
        ([GOOD + 0.1], [GOOD], "differ by 0.05 of the largest"),
        ([GOOD.T], [GOOD], r"its shape is \[2, 1\]"),
        ([], [], "a gives 0 outputs, b 0"),
        ([GOOD], [GOOD, GOOD], "a gives 1 outputs, b 2"),
        ([GOOD[:0]], [GOOD[:0]], "it has no values"),
        ([GOOD * np.nan], [GOOD * np.nan], "no finite value"),
        ([GOOD * np.inf], [GOOD * np.inf], "no finite value"),
    ],
)
def test_what_does_not_agree_or_says_nothing_is_not_timed(
    outputs: list[np.ndarray], expected: list[np.ndarray], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        compare("a", outputs, "b", expected)
