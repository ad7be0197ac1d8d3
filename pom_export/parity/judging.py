"""Judge a file on every path that runs here, and in half precision also without rounding; for export and verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pom_export.graph.exported_model import ExportedModel
from pom_export.parity import tolerances
from pom_export.parity.candidates import Candidate, unrounded_candidates
from pom_export.parity.case import Case
from pom_export.parity.names import SAME_NAMES, Names
from pom_export.parity.report import Comparison
from pom_export.parity.targets import Target
from pom_export.parity.tolerances import Bounds, Tolerance
from pom_export.parity.verification import PathError, compare

_ROUNDING_UNKNOWN = (
    "what half precision does to the reference's outputs is not known: the bound is the loose one of the type alone"
)


@dataclass(frozen=True)
class Judgement:
    """What was found of a file.

    Attributes:
        candidates: all that were tried.
        comparisons: one a backend, path and output.
        failed: what failed to run, which is the file's fault.
        unable: what could not be run, which may be ours: a graph that emulates half precision.
    """

    candidates: list[Candidate]
    comparisons: list[Comparison]
    failed: list[str]
    unable: list[str]

    @property
    def paths(self) -> list[str]:
        """The backends that ran, each with the implementation of the op that it took."""
        return list(dict.fromkeys(f"{each.backend} {each.path}" for each in self.comparisons))


def half_notes(precision: str, targets: Sequence[Target]) -> list[str]:
    """Say where what half precision does to the reference is not known.

    Args:
        precision: the type that the file is judged by.
        targets: what the reference gives.
    """
    return [_ROUNDING_UNKNOWN] if precision in tolerances.ROUNDING and not _rounding_known(targets) else []


def _rounding_known(targets: Sequence[Target]) -> bool:
    return any(target.unrounded is not None for target in targets[:1])


def judge(
    model: ExportedModel,
    candidates: Sequence[Candidate],
    cases: Sequence[Case],
    targets: Sequence[Target],
    tolerance: Tolerance,
    bounds: Bounds | None,
    *,
    own: bool = False,
    names: Names = SAME_NAMES,
    progress: Callable[[str], None] | None = None,
) -> Judgement:
    """Compare every candidate that can load and run a file.

    Args:
        model: the file.
        candidates: the backends; those of half precision are compared without rounding besides, where it is known
            what that gives.
        cases: the inputs.
        targets: what the reference gives, case by case.
        tolerance: the bound on every output of floats.
        bounds: how far they may be in terms of what rounding does, of half precision.
        own: whether the reference is a user's own module.
        names: what the file calls inputs and outputs.
        progress: called with one line a candidate; None: nobody waits for it.

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
