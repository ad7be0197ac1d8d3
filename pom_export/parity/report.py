"""The result of a comparison, as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.parity.comparison import Difference, finite, share_of_tolerance
from pom_export.parity.modules import DebugReport
from pom_export.parity.origin import Origin
from pom_export.parity.quantized.report import QuantizedReport


@dataclass(frozen=True)
class CaseResult:
    """One backend's output on one case."""

    case: str
    shapes: str
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """One output of one backend against the reference, over all cases; truthy if every case passed.

    Attributes:
        backend: "onnxruntime", "tensorrt" or "tensorrt-rtx".
        path: "kernel" or "function" (ONNX Runtime), or "plugin" (TensorRT).
        output: name of the output.
        cases: one result per case, in order.
    """

    backend: str
    path: str
    output: str
    cases: tuple[CaseResult, ...]

    def __bool__(self) -> bool:
        return bool(self.cases) and all(case.difference for case in self.cases)

    @property
    def inconclusive(self) -> bool:
        """Whether the reference was zero everywhere in every case."""
        return all(case.difference.reference_is_zero for case in self.cases)

    @property
    def constant(self) -> float | None:
        """The reference's value if it was the same everywhere in every case; else None."""
        found = {case.difference.reference_constant for case in self.cases}
        return found.pop() if len(found) == 1 else None

    @property
    def worst(self) -> CaseResult:
        """The case that uses up the largest share of its tolerance."""
        return max(self.cases, key=lambda case: share_of_tolerance(case.difference))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values; the numbers are those of the worst case."""
        worst = self.worst
        return {
            "backend": self.backend,
            "path": self.path,
            "output": self.output,
            **finite(asdict(worst.difference)),
            "passed": bool(self),
            "worst_case": worst.case,
            "cases": [
                {"case": c.case, "shapes": c.shapes, **finite(asdict(c.difference)), "passed": bool(c.difference)}
                for c in self.cases
            ],
        }


def paths_of(comparisons: Sequence[Comparison]) -> list[str]:
    """Return the backends of comparisons, each with the implementation of the op that it used."""
    return list(dict.fromkeys(f"{each.backend} {each.path}" for each in comparisons))


def is_all_zero(comparisons: Sequence[Comparison]) -> bool:
    """Return whether the reference was zero everywhere, in all outputs and cases: a wrong file may give that too."""
    return bool(comparisons) and all(comparison.inconclusive for comparison in comparisons)


def inconclusive_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """Note the outputs for which a comparison proves little: those that are a single number, or NaN, in PyTorch."""
    if is_all_zero(comparisons):
        return ["the reference is zero everywhere, in every output and case, which proves nothing: this is not a pass"]
    notes = {}
    for each in comparisons:
        if each.inconclusive or each.constant is not None:
            number = "zero" if each.inconclusive else f"{each.constant:g}"
            notes[each.output] = (
                f"the reference of output {each.output} is {number} everywhere in every case, which proves nothing"
            )
        elif nan := sum(case.difference.reference_nan for case in each.cases):
            notes[each.output] = f"the reference of output {each.output} holds {nan} NaN, where nothing was compared"
    return list(notes.values())


@dataclass(frozen=True)
class ParityReport:
    """The outcome of `verify`; truthy if every comparison passed, at least one was conclusive, and none failed to run.

    Attributes:
        model: path of the ONNX file.
        reference: description of where the expected outputs come from.
        precision: the type whose tolerance applied, or "custom".
        comparisons: one per backend, path and output.
        not_run: backends that could not run here, each with the reason.
        notes: further remarks, none of them a failure.
        failed: what should have run here but did not, each with the reason.
        located: the comparison of the model's modules, if it was asked for.
        quantized: for a quantized file: what was found about its quantized products.
        origin: when, with which versions and from which files the report was made.
    """

    model: str
    reference: str
    precision: str
    comparisons: Sequence[Comparison]
    not_run: Sequence[str]
    notes: Sequence[str] = ()
    failed: Sequence[str] = ()
    origin: Origin = field(default_factory=Origin)
    located: DebugReport | None = None
    quantized: QuantizedReport | None = None

    def __bool__(self) -> bool:
        within = bool(self.comparisons) and all(self.comparisons) and not self.failed and not self.inconclusive
        within = within and (self.quantized is None or bool(self.quantized))
        return within and (self.located is None or bool(self.located))

    @property
    def inconclusive(self) -> bool:
        """Whether the reference was zero everywhere, in all outputs and cases: a wrong file may give that too."""
        return is_all_zero(self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        return {
            "passed": bool(self),
            "model": self.model,
            "reference": self.reference,
            "precision": self.precision,
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
            "not_run": list(self.not_run),
            "notes": list(self.notes),
            "failed": list(self.failed),
            **asdict(self.origin),
            **({} if self.quantized is None else {"quantized": self.quantized.to_dict()}),
            **({} if self.located is None else self._of_modules(self.located)),
        }

    @staticmethod
    def _of_modules(located: DebugReport) -> dict[str, Any]:
        found = located.to_dict()
        return {name: found[name] for name in ("first", "cause", "modules", "runs", "differences")}
