"""Compare outputs with the reference's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.graph.exported import PAST_STATE, present_name
from pom_export.parity.measure import measure
from pom_export.parity.tolerances import EXACT, STATE_FEATURES, STATE_ROUNDING, Tolerance

Array = npt.NDArray[Any]
_PRESENT_STATE = present_name(PAST_STATE)
# A state is (batch, mixer, sum and compensation, channel).
_MIXER_AXIS, _PAIR_AXIS, _STATE_RANK = 1, 2, 4


@dataclass(frozen=True)
class Difference:
    """How far one output is from the reference; truthy when within the tolerance.

    Attributes:
        max_abs: max |a - b|; infinite where the two cannot be compared.
        max_rel: max_abs over the reference's largest magnitude (0 for 0/0).
        cosine: cosine similarity of the flattened outputs.
        tolerance: the bound on max_abs.
        reason: why the two cannot be compared; empty where they were.
    """

    max_abs: float
    max_rel: float
    cosine: float
    tolerance: float
    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason and self.max_abs <= self.tolerance


def difference(actual: Array, reference: Array, tolerance: Tolerance) -> Difference:
    """Measure `actual` against `reference` in float64; numbers that count something must be the same."""
    if actual.shape != reference.shape:
        return _incomparable(f"its shape is {list(actual.shape)}, the reference's {list(reference.shape)}", tolerance)
    if reference.dtype.kind in "biu":
        tolerance = EXACT
    found = measure(actual, reference)
    if not found.count:
        return _incomparable("the reference has no finite value" if reference.size else "it has no values", tolerance)
    bound = tolerance.absolute + tolerance.relative * found.magnitude
    if found.odd:
        return replace(_incomparable("NaN or infinity is on one side alone", tolerance), tolerance=bound)
    max_rel = found.max_abs / found.magnitude if found.magnitude else found.max_abs
    return Difference(found.max_abs, max_rel, found.cosine, bound)


def _incomparable(reason: str, tolerance: Tolerance) -> Difference:
    return Difference(np.inf, np.inf, 0.0, tolerance.absolute, reason)


def state_difference(actual: Array, reference: Array, past: Array, tolerance: Tolerance) -> Difference:
    """Measure a state (B, L, 2, C), each mixer on its own scale, and return the mixer that uses most of its bound.

    Both floats of a pair are one number. What a call adds to it is an output like another, as exact as the model's
    type makes it; what was there before is carried on to the precision of two floats.

    Args:
        actual: the state.
        reference: what it should be.
        past: the state before the call.
        tolerance: the bound on what the call adds.
    """
    if actual.shape != reference.shape:
        return difference(actual, reference, tolerance)
    sums, expected, before = (np.asarray(part, np.float64).sum(_PAIR_AXIS) for part in (actual, reference, past))
    found = []
    for mixer in range(expected.shape[_MIXER_AXIS]):
        a, b, start = (part[:, mixer] for part in (sums, expected, before))
        added, total = (float(np.abs(part).max(initial=0.0)) for part in (b - start, b))
        relative = STATE_FEATURES * tolerance.relative
        bound = tolerance.absolute + relative * added + STATE_ROUNDING.relative * total
        found.append(replace(difference(a, b, tolerance), tolerance=bound))
    if not found:
        return _incomparable("it has no values", tolerance)
    return max(found, key=share_of_tolerance)


def share_of_tolerance(difference: Difference) -> float:
    """Return max_abs over the tolerance: above 1 is a failure."""
    if difference.tolerance and not difference.reason:
        return difference.max_abs / difference.tolerance
    return 0.0 if difference else float("inf")


def compare_outputs(
    feed: Mapping[str, Array], reference: Mapping[str, Array], actual: Mapping[str, Array], tolerance: Tolerance
) -> dict[str, Difference]:
    """Return how far each of the reference's outputs is from the one of the same name.

    Args:
        feed: the inputs of both.
        reference: the outputs as they should be.
        actual: the outputs.
        tolerance: the bound on every output of floats.
    """
    found = {}
    for name, expected in reference.items():
        if name not in actual:
            found[name] = _incomparable("it is missing", tolerance)
        elif name == _PRESENT_STATE and PAST_STATE in feed and expected.ndim == _STATE_RANK:
            found[name] = state_difference(actual[name], expected, feed[PAST_STATE], tolerance)
        else:
            found[name] = difference(actual[name], expected, tolerance)
    return found
