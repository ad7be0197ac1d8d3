"""Compare outputs with those of the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.graph.exported_model import PAST_STATE, present_name
from pom_export.parity.measure import Measure, measure, sentinels
from pom_export.parity.targets import Spread, Target
from pom_export.parity.tolerances import EXACT, STATE_FEATURES, STATE_ROUNDING, Bounds, Growth, Tolerance

Array = npt.NDArray[Any]
_PRESENT_STATE = present_name(PAST_STATE)
# The axes of a state: batch, mixer, pair (sum and compensation), channel.
_MIXER_AXIS, _PAIR_AXIS, _STATE_RANK = 1, 2, 4


@dataclass(frozen=True)
class Difference:
    """How far an output is from the reference; truthy if it is within both bounds.

    Attributes:
        max_abs: max |a - b|; infinite if the two cannot be compared.
        max_rel: max_abs over the reference's largest magnitude (0 for 0/0).
        cosine: cosine similarity of the flattened outputs.
        tolerance: the bound on max_abs.
        reason: why the two cannot be compared; empty if they were.
        rms: the root mean square of a - b.
        rms_tolerance: the bound on rms; infinite if only max_abs is bounded.
        reference_is_zero: whether the reference is zero everywhere, so that many faults would go unnoticed.
        reference_constant: the reference's value if all of its elements, at least two, are equal; else None.
        reference_nan: how many elements of the reference are NaN, and were therefore not compared.
        own_error: how far the reference is off in the file's type, where that widened the bounds; else 0.
    """

    max_abs: float
    max_rel: float
    cosine: float
    tolerance: float
    reason: str = ""
    rms: float = 0.0
    rms_tolerance: float = np.inf
    reference_is_zero: bool = False
    reference_constant: float | None = None
    reference_nan: int = 0
    own_error: float = 0.0

    def __bool__(self) -> bool:
        return not self.reason and self.max_abs <= self.tolerance and self.rms <= self.rms_tolerance

    @property
    def broken(self) -> str:
        """The bounds that are exceeded, and by how much; empty if none is."""
        if self.reason:
            return self.reason
        names = (("max_abs", self.max_abs, self.tolerance), ("rms", self.rms, self.rms_tolerance))
        return " and ".join(
            f"{name} {found:.2e} is {_times(found, bound)} {bound:.2e}" for name, found, bound in names if found > bound
        )


def _times(found: float, bound: float) -> str:
    return f"{found / bound:.3g} times its bound" if bound else "beyond its bound"


def difference(
    actual: Array,
    reference: Array,
    tolerance: Tolerance,
    bounds: Bounds | Growth | None = None,
    spread: Spread | None = None,
    *,
    partial: bool = False,
) -> Difference:
    """Measure `actual` against `reference` in float64; integers and booleans must be equal.

    Args:
        actual: the output.
        reference: the expected output, of any shape.
        tolerance: the bound on the largest difference.
        bounds: further bounds, in terms of `spread`.
        spread: the reference's own rounding error.
        partial: whether elements that are NaN in the reference may have any value.
    """
    if actual.shape != reference.shape:
        return _incomparable(f"its shape is {list(actual.shape)}, the reference's {list(reference.shape)}", tolerance)
    if reference.dtype.kind in "biu":
        tolerance, bounds = EXACT, None
    found = measure(actual, reference, partial=partial)
    if not found.count:
        return _incomparable("the reference has no finite value" if reference.size else "it has no values", tolerance)
    bound, rms_bound = tolerance.absolute + tolerance.relative * found.magnitude, float("inf")
    own_error = 0.0
    if isinstance(bounds, Growth) and spread is not None and bounds.largest * spread.largest > bound:
        own_error, plain = spread.largest, bound
        bound = min(bounds.most * plain, bounds.largest * spread.largest)
        rms_bound = max(tolerance.absolute + tolerance.relative * found.reference_rms, bounds.rms * spread.rms)
    if isinstance(bounds, Bounds) and spread is not None:
        bound, rms_bound = _narrowed(bound, tolerance, bounds, spread, found)
    if found.odd:
        return replace(_incomparable("NaN or infinity is on one side alone", tolerance), tolerance=bound)
    max_rel = found.max_abs / found.magnitude if found.magnitude else found.max_abs
    nan = 0 if partial else found.nan
    zero = not found.magnitude
    return Difference(
        found.max_abs, max_rel, found.cosine, bound, "", found.rms, rms_bound, zero, found.constant, nan, own_error
    )


def _narrowed(
    bound: float, tolerance: Tolerance, bounds: Bounds, spread: Spread, found: Measure
) -> tuple[float, float]:
    """Return the bounds on the largest and on the root mean square difference, given a spread."""
    largest = bounds.largest * spread.largest + bounds.least * found.magnitude + tolerance.absolute
    rms = bounds.rms * spread.rms + bounds.least * found.reference_rms + tolerance.absolute
    return min(bounds.most * bound, largest), rms


def _incomparable(reason: str, tolerance: Tolerance) -> Difference:
    return Difference(np.inf, np.inf, 0.0, tolerance.absolute, reason)


def share_of_tolerance(difference: Difference) -> float:
    """Return the largest share of a bound that is used up; above 1 is a failure."""
    if difference.reason:
        return float("inf")
    pairs = ((difference.max_abs, difference.tolerance), (difference.rms, difference.rms_tolerance))
    return max(found / bound if bound else (float("inf") if found else 0.0) for found, bound in pairs)


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace infinities, which JSON lacks, with None."""
    return {name: None if value in (float("inf"), float("-inf")) else value for name, value in values.items()}


@dataclass(frozen=True)
class _Part:
    """Values compared on a scale of their own: an output, or what a call adds to one mixer's sums.

    Attributes:
        actual: the actual values.
        reference: the expected values.
        factor: how much larger the relative error may be than an output's.
        absolute: additional absolute error allowed.
    """

    actual: Array
    reference: Array
    factor: float = 1.0
    absolute: float = 0.0


def _parts(name: str, feed: Mapping[str, Array], actual: Array, reference: Array) -> Iterator[_Part]:
    """Split an output into parts with a scale of their own.

    Numbers far beyond all others form one part, and the others another. In a state (B, L, 2, C), each mixer is a part,
    and the two floats of a pair count as one number. What a call adds to the state is compared like any output, with
    the precision of the model's type. What was there before is carried over with the precision of two floats.
    """
    is_state = name == _PRESENT_STATE and PAST_STATE in feed and reference.ndim == _STATE_RANK
    if actual.shape == reference.shape and (far := sentinels(reference)) is not None and not is_state:
        yield _Part(actual[~far], reference[~far])
        yield _Part(actual[far], reference[far])
        return
    if not is_state or actual.shape != reference.shape or not reference.shape[_MIXER_AXIS]:
        yield _Part(actual, reference)
        return
    sums, expected, before = (
        np.asarray(each, np.float64).sum(_PAIR_AXIS) for each in (actual, reference, feed[PAST_STATE])
    )
    for mixer in range(expected.shape[_MIXER_AXIS]):
        a, b, start = (each[:, mixer] for each in (sums, expected, before))
        total = float(np.abs(b).max(initial=0.0))
        yield _Part(a - start, b - start, STATE_FEATURES, STATE_ROUNDING.relative * total)


def spreads(
    feed: Mapping[str, Array], rounded: Mapping[str, Array], reference: Mapping[str, Array]
) -> dict[str, tuple[Spread, ...]]:
    """Measure how far rounding moved a reference's outputs, part by part.

    Args:
        feed: the inputs of both.
        rounded: the outputs with rounding.
        reference: the outputs without.
    """
    found = {}
    for name, expected in reference.items():
        if expected.dtype.kind not in "biu":
            parts = _parts(name, feed, rounded[name], expected)
            measures = [measure(part.actual, part.reference, partial=True) for part in parts]
            found[name] = tuple(Spread(each.rms, each.max_abs) for each in measures)
    return found


def compare_outputs(
    feed: Mapping[str, Array],
    target: Target,
    actual: Mapping[str, Array],
    tolerance: Tolerance,
    bounds: Bounds | Growth | None = None,
    *,
    partial: bool = False,
) -> dict[str, Difference]:
    """Compare each output with the reference's output of the same name, and return the difference of its worst part.

    Args:
        feed: the inputs of both.
        target: the expected outputs, and how far rounding moves them.
        actual: the outputs.
        tolerance: the bound on each floating-point output.
        bounds: further bounds, in terms of the effect of rounding.
        partial: whether elements that are NaN in the reference may have any value.
    """
    found = {}
    for name, expected in target.outputs.items():
        if name not in actual:
            found[name] = _incomparable("it is missing", tolerance)
            continue
        known = target.spreads.get(name, ())
        parts = []
        for index, part in enumerate(_parts(name, feed, actual[name], expected)):
            its = replace(
                tolerance,
                relative=part.factor * tolerance.relative,
                absolute=tolerance.absolute + part.absolute,
            )
            spread = known[index] if index < len(known) else None
            scaled = replace(bounds, least=part.factor * bounds.least) if isinstance(bounds, Bounds) else bounds
            parts.append(difference(part.actual, part.reference, its, scaled, spread, partial=partial))
        worst = max(parts, key=share_of_tolerance)
        zero = all(each.reference_is_zero for each in parts)
        found[name] = worst if len(parts) == 1 else replace(worst, reference_is_zero=zero, reference_constant=None)
    return found
