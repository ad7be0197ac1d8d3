"""Whether backends that compute the same do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import ParityError

# Relative to the largest magnitude. Looser than what `verify` asks: a plain float32 sum over 100,000 tokens is off by
# 1e-4, and here it is only to be seen that all do the same work.
_TOLERANCE: Final = {"float32": 1e-3, "float16": 3e-2}
Arrays = Sequence[npt.NDArray[Any]]


def compare(name: str, outputs: Arrays, against: str, expected: Arrays, precision: str = "float32") -> float:
    """Return the largest difference between two backends' outputs, relative to the largest magnitude.

    Raises:
        ParityError: it is too large.
    """
    worst, tolerance = 0.0, _TOLERANCE[precision]
    for output, wanted in zip(outputs, expected, strict=True):
        scale = float(np.abs(wanted).max()) or 1.0
        same_shape = output.shape == wanted.shape
        difference = float(np.abs(output - wanted).max()) / scale if same_shape else np.inf
        if not difference <= tolerance:
            raise ParityError(
                f"{name} and {against} differ by {difference:.3g} of the largest output, tolerance {tolerance:g}",
                "Nothing was timed: `pom-export verify` says more",
            )
        worst = max(worst, difference)
    return worst
