"""Judge a file on every path that runs here, and in half precision also without rounding; for export and verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pom_export.errors import ParityError
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity import tolerances
from pom_export.parity.candidates import Candidate, unrounded_candidates
from pom_export.parity.case import Case
from pom_export.parity.names import SAME_NAMES, Names
from pom_export.parity.report import Comparison, paths_of
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import Bounds, Growth, Tolerance
from pom_export.parity.verification import PathError, compare

_ROUNDING_UNKNOWN = (
    "the effect of half precision on the reference's outputs is not known: the only bound is the type's loose one"
)


@dataclass(frozen=True)
class Judgement:
    """The results of comparing a file.

    Attributes:
        candidates: all candidates that were tried.
        comparisons: one per backend, path and output.
        failed: candidates that failed to run because of the file.
        unable: candidates that failed for what may be our fault: the graph that emulates half precision.
    """

    candidates: list[Candidate]
    comparisons: list[Comparison]
    failed: list[str]
    unable: list[str]

    @property
    def paths(self) -> list[str]:
        """The backends that ran, each with the implementation of the op that it used."""
        return paths_of(self.comparisons)


def half_notes(precision: str, targets: Sequence[Target]) -> list[str]:
    """Note that the effect of half precision on the reference is not known, if so.

    Args:
        precision: the type that the file is judged by.
        targets: the expected outputs.
    """
    return [_ROUNDING_UNKNOWN] if precision in tolerances.ROUNDING and not _rounding_known(targets) else []


def own_error_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Note that the reference's own error in float32 widened the bounds, if so."""
    found = [case.difference for comparison in comparisons for case in comparison.cases]
    worst = max(found, key=lambda each: each.own_error, default=None)
    if worst is None or not worst.own_error:
        return []
    return [
        f"PyTorch in float32 is off by up to {worst.own_error:.2g} from float64 on what was compared, more than other "
        f"models; the file may be off by {worst.tolerance:.2g}"
    ]


def parity_error(comparison: Comparison, hint: str, reference: str = "PyTorch") -> ParityError:
    """Return the error for a comparison that failed, which names its worst case.

    Args:
        comparison: the comparison.
        hint: what to do.
        reference: what the outputs were compared with.
    """
    worst = comparison.worst
    found = worst.difference
    why = f" ({found.reason})" if found.reason else ""
    if found.reason or found.max_abs > found.tolerance:
        by = f"{found.max_abs:.3g}{why} on {worst.case}, tolerance {found.tolerance:.3g}"
    else:
        by = f"{found.rms:.3g} (root mean square) on {worst.case}, tolerance {found.rms_tolerance:.3g}"
    return ParityError(
        f"{comparison.output} of {comparison.backend} ({comparison.path}) differs from {reference} by {by}", hint
    )


def _rounding_known(targets: Sequence[Target]) -> bool:
    return any(target.unrounded is not None for target in targets[:1])


def judge(
    model: ExportedModel,
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    targets: Sequence[Target],
    tolerance: Tolerance,
    bounds: Bounds | Growth | None,
    *,
    own: bool = False,
    names: Names = SAME_NAMES,
    progress: Callable[[str], None] | None = None,
) -> Judgement:
    """Compare every candidate that can load and run a file.

    Args:
        model: the file.
        candidates: the backends. In half precision they are also compared without rounding, if the outputs without
            rounding are known.
        cases: the inputs.
        targets: the expected outputs, case by case.
        tolerance: the bound on each floating-point output.
        bounds: in half precision, further bounds in terms of the effect of rounding.
        own: whether the reference is a user's own module.
        names: the file's names of inputs and outputs.
        progress: called with one line per candidate; None: no progress is reported.

    Raises:
        InputError: no candidate can run the model, or the reference fails.
    """
    unrounded = tolerances.UNROUNDED_OWN if own else tolerances.UNROUNDED
    every = list(candidates)
    if bounds is not None and _rounding_known(targets):
        every += unrounded_candidates(model, candidates)
    comparisons: list[Comparison] = []
    failures: list[tuple[Candidate, PathError]] = []
    for candidate in every:
        if progress is not None:
            progress(f"{candidate.backend} ({candidate.path}): {len(cases)} cases")
        its = (tolerance, bounds) if candidate.rounds else (tolerances.UNROUNDED_MOST, unrounded)
        try:
            comparisons += compare(cases, targets, candidate, *its, names=names)
        except PathError as error:
            failures.append((candidate, error))
    if not comparisons and failures:
        raise failures[0][1]
    failed: list[str] = []
    unable: list[str] = []
    for candidate, failure in failures:
        ran_otherwise = any(candidate.backend == each.backend for each in comparisons)
        its_fault = not candidate.emulates or ran_otherwise
        (failed if its_fault else unable).append(f"{candidate.backend} ({candidate.path}): {failure.what}")
    return Judgement(every, comparisons, failed, unable)
