"""Compare outputs with the reference's: the comparison function that Polygraphy's Comparator is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.parity.tolerances import Tolerance


@dataclass(frozen=True)
class Difference:
    """How far one output is from the reference; truthy when within the tolerance.

    Attributes:
        max_abs: max |a - b|; infinite where the shapes, NaN or infinities differ.
        max_rel: max_abs over the reference's largest magnitude (0 for 0/0).
        cosine: cosine similarity of the flattened outputs.
        tolerance: the bound on max_abs.
    """

    max_abs: float
    max_rel: float
    cosine: float
    tolerance: float

    def __bool__(self) -> bool:
        return self.max_abs <= self.tolerance


def difference(actual: npt.NDArray[Any], reference: npt.NDArray[Any], tolerance: Tolerance) -> Difference:
    """Measure `actual` against `reference` in float64."""
    if actual.shape != reference.shape:
        return Difference(np.inf, np.inf, 0.0, tolerance.absolute)
    a, b = np.asarray(actual, np.float64).ravel(), np.asarray(reference, np.float64).ravel()
    if not a.size:
        return Difference(0.0, 0.0, 1.0, tolerance.absolute)
    finite = np.isfinite(b)
    magnitude = float(np.abs(b[finite]).max(initial=0.0))
    bound = tolerance.absolute + tolerance.relative * magnitude
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Difference(np.inf, np.inf, 0.0, bound)
    a, b = a[finite], b[finite]
    max_abs = float(np.abs(a - b).max(initial=0.0))
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    cosine = float(a @ b) / norm if norm else float(max_abs == 0.0)
    return Difference(max_abs, max_abs / magnitude if magnitude else max_abs, cosine, bound)


class CompareToReference:
    """A Polygraphy comparison function: outputs of the first runner are the reference of the second's.

    Args:
        tolerance: the bound on every output.
    """

    def __init__(self, tolerance: Tolerance) -> None:
        self.tolerance = tolerance

    def __call__(  # noqa: D102 (the class says it)
        self, reference: Mapping[str, Any], actual: Mapping[str, Any]
    ) -> OrderedDict[str, Difference]:
        return OrderedDict(
            (name, difference(actual[name], expected, self.tolerance)) for name, expected in reference.items()
        )
