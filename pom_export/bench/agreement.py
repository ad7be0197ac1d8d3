"""Check that backends that compute the same function agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from pom_export.errors import ParityError
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import BENCHMARK

Arrays = Sequence[npt.NDArray[Any]]


def compare(name: str, outputs: Arrays, against: str, expected: Arrays, precision: str = "float32") -> float:
    """Return the largest difference between two backends' outputs, relative to the largest magnitude.

    Raises:
        ParityError: it is too large, or there is nothing to compare: no outputs, or no finite value in one of them.
    """
    if not expected or len(outputs) != len(expected):
        raise ParityError(
            f"{name} gives {len(outputs)} outputs, {against} {len(expected)}",
            "Nothing was timed: they do not do the same work",
        )
    found = [difference(output, wanted, BENCHMARK[precision]) for output, wanted in zip(outputs, expected, strict=True)]
    for each in found:
        if not each:
            reason = f" ({each.reason})" if each.reason else ""
            raise ParityError(
                f"{name} and {against} differ by {each.max_rel:.3g} of the largest output{reason}, tolerance "
                f"{BENCHMARK[precision].relative:g}",
                "Nothing was timed: `pom-export verify` says more",
            )
    return max(each.max_rel for each in found)
