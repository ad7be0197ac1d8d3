"""Compare a rewritten file with the original, both in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pom_export.errors import InputError, reason_of
from pom_export.graph.exported_model import PRECISIONS, ExportedModel
from pom_export.parity import tolerances
from pom_export.parity.candidates import KERNEL, Candidate, onnxruntime_candidates, unrounded_candidates
from pom_export.parity.case import Array, Case, run_case, widened
from pom_export.parity.judging import parity_error
from pom_export.parity.names import SAME_NAMES
from pom_export.parity.report import Comparison, paths_of
from pom_export.parity.targets import Target, Targets
from pom_export.parity.verification import compare
from pom_export.quiet import quiet_polygraphy


@dataclass(frozen=True)
class Rewriting:
    """The comparison of a rewritten file with its original.

    Attributes:
        comparisons: one per output, path of the rewritten file and, in half precision, way of rounding.
        cases: the names of the cases that were compared.
        notes: the cases that could not be compared, with the reasons.
    """

    comparisons: Sequence[Comparison]
    cases: Sequence[str]
    notes: Sequence[str]

    @property
    def paths(self) -> list[str]:
        """The backends that ran the rewritten file, each with the implementation of the op that it used."""
        return paths_of(self.comparisons)

    def check(self, original: Path, hint: str) -> None:
        """Raise ParityError if an output differs.

        Args:
            original: the original file.
            hint: what to do then.
        """
        for comparison in self.comparisons:
            if not comparison:
                raise parity_error(comparison, hint, str(original))


def compare_rewritten(
    original: ExportedModel, rewritten: ExportedModel, cases: Sequence[Case], *, unrounded: bool = True
) -> Rewriting:
    """Run both files on the same inputs, on every path of the rewritten one, and compare all outputs.

    The original runs without our kernels if it can. In half precision both are also computed without rounding, so that
    rounding does not hide a difference.

    Args:
        original: the file.
        rewritten: the file made from it, with the same inputs and outputs.
        cases: the inputs. Those that the original refuses, or on which it gives no numbers, are left out.
        unrounded: False for a half-precision original whose constants are rounded too, and those of the other are not.

    Raises:
        InputError: no case could be compared, or the rewritten file cannot be run.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    runs, _ = onnxruntime_candidates(rewritten)
    rounds, exact = _reference(original)
    exact = exact if unrounded else None
    comparisons: list[Comparison] = []
    with quiet_polygraphy(), ExitStack() as loaded:
        for candidate in filter(None, (rounds, exact)):
            loaded.enter_context(candidate.runner)

        def target(case: Case) -> Target:
            unrounded = None if exact is None else Target(_run(exact, widened(case)))
            return Target(_run(rounds, case), unrounded=unrounded)

        usable, notes = _usable(cases, target)
        targets = Targets(usable, target)
        for candidate in [*runs, *(unrounded_candidates(rewritten, runs) if exact else ())]:
            bound = tolerances.MODELS[rewritten.precision if candidate.rounds else PRECISIONS[0]]
            comparisons += compare(usable, targets, candidate, bound)
    return Rewriting(comparisons, [case.name for case in usable], notes)


def _reference(original: ExportedModel) -> tuple[Candidate, Candidate | None]:
    """Return how the original runs: with its type's rounding and, in half precision, also without."""
    found, missing = onnxruntime_candidates(original)
    if not found:
        raise InputError(f"ONNX Runtime cannot run {original.path}: {'; '.join(missing)}", "Export it again")
    rounds = next((each for each in found if each.path != KERNEL), found[0])
    return rounds, next(iter(unrounded_candidates(original, [rounds])), None) if _is_half(original) else None


def _is_half(model: ExportedModel) -> bool:
    return model.precision != PRECISIONS[0]


def _run(candidate: Candidate, case: Case) -> dict[str, Array]:
    outputs = run_case(SAME_NAMES.translated(candidate.runner.infer), case)
    return {name: array if array.dtype.kind in "biu" else array.astype(np.float64) for name, array in outputs.items()}


def _usable(cases: Sequence[Case], target: Callable[[Case], Target]) -> tuple[list[Case], list[str]]:
    """Return the cases on which the original gives numbers, and notes on the others.

    Raises:
        InputError: there is none.
    """
    usable, notes = [], []
    for case in cases:
        try:
            reason = _reason_against(target(case).outputs)
        except Exception as error:  # noqa: BLE001 (whatever ONNX Runtime raises for inputs that the model refuses)
            reason = reason_of(error)
        if reason:
            notes.append(f"not compared on {case.name}: {reason}")
        else:
            usable.append(case)
    if not usable:
        raise InputError(
            f"the two files could be compared on no inputs: {'; '.join(notes) or 'none were given'}",
            "Give `inputs` that the model takes",
        )
    return usable, notes


def _reason_against(outputs: Mapping[str, Array]) -> str:
    """Return why outputs prove nothing: one is empty, or has no finite value; empty if they do."""
    for name, array in outputs.items():
        if not array.size:
            return f"{name} is empty"
        if array.dtype.kind == "f" and not np.isfinite(array).any():
            return f"{name} has no finite value"
    return ""
