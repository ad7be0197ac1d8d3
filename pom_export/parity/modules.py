"""How far each module of a file is from its reference, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from pom_export.parity.comparison import finite

NOT_IN_GRAPH: Final = "not in the graph"
"""Why a module was not compared: the export folded it, fused it or left it out."""


@dataclass(frozen=True)
class ModuleResult:
    """One call of a module in a file against the reference. All errors are relative: see `tolerance`.

    Attributes:
        name: the module's name in the model; for the model itself, the name of its class.
        type: the module's class; empty for a comparison of two files.
        call: how many calls of the same module came before this one.
        error_in: how far the module's inputs in the file are from the reference's.
        error_out: how far its outputs in the file are from the reference's.
        error: how far what it computes is from the reference's, for the inputs that it has in the file and the outputs
            that the modules in it have there: the module's own error.
        tolerance: the bound on `error`. All four are relative to the largest magnitude in the reference's tensor.
        case: the inputs on which the module's own error is the largest share of its bound.
        reason: why it was not compared, or why it can't be; empty otherwise.
        passed: whether its own error is within tolerance; True if it was not compared.
        axes: how the axes of an output differ, if that explains the error.
    """

    name: str
    type: str
    call: int
    error_in: float | None
    error_out: float | None
    error: float | None
    tolerance: float | None
    case: str = ""
    reason: str = ""
    passed: bool = True
    axes: str = ""

    @property
    def compared(self) -> bool:
        """Whether there was anything to compare."""
        return self.error_out is not None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable values."""
        return {**finite(asdict(self)), "compared": self.compared}


@dataclass(frozen=True)
class ModuleRun:
    """All modules of a file on one backend; truthy if all of those that were compared are within tolerance.

    Attributes:
        backend: as in `verify`: "onnxruntime", and its variants for half precision.
        path: "kernel", "function" or "standard operators".
        modules: the calls of modules, in the order in which they end.
        first: index in `modules` of the first that is out of tolerance; None if there is none.
    """

    backend: str
    path: str
    modules: Sequence[ModuleResult]
    first: int | None = None

    def __bool__(self) -> bool:
        return any(each.compared for each in self.modules) and all(each.passed for each in self.modules)


@dataclass(frozen=True)
class FileDifference:
    """A node or weight of a file that differs from the reference's.

    Attributes:
        module: name of the innermost module that it is in.
        what: what differs, and by how much.
        kind: "weight", "constant", "attribute", "operator" or "input".
    """

    module: str
    what: str
    kind: str


@dataclass(frozen=True)
class DebugReport:
    """The outcome of `debug`; truthy if modules were compared and nothing differs.

    Attributes:
        model: path of the ONNX file.
        reference: description of what it was compared with.
        first: name of the first module out of tolerance, the innermost that can be told; None if there is none.
        cause: the likely cause; empty if nothing differs.
        runs: one per backend and path.
        differences: weights and nodes that differ from those of a fresh export, or from the other file's.
        not_run: backends that could not run here, each with the reason.
        notes: further remarks.
        failed: what should have run here but did not, each with the reason.
    """

    model: str
    reference: str
    first: str | None
    cause: str
    runs: Sequence[ModuleRun]
    differences: Sequence[FileDifference] = ()
    not_run: Sequence[str] = ()
    notes: Sequence[str] = ()
    failed: Sequence[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.runs) and all(self.runs) and self.first is None and not self.failed

    @property
    def run(self) -> ModuleRun | None:
        """The run that found the first module: the first run with one out of tolerance, else simply the first."""
        return next((run for run in self.runs if not run), next(iter(self.runs), None))

    @property
    def modules(self) -> Sequence[ModuleResult]:
        """The modules of that run, in the order in which their calls end."""
        return self.run.modules if self.run is not None else ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-serialisable values."""
        run = self.run
        return {
            "passed": bool(self),
            "model": self.model,
            "reference": self.reference,
            "first": self.first,
            "cause": self.cause,
            "backend": run.backend if run is not None else None,
            "path": run.path if run is not None else None,
            "modules": [each.to_dict() for each in self.modules],
            "runs": [_summary(each) for each in self.runs],
            "differences": [asdict(each) for each in self.differences],
            "not_run": list(self.not_run),
            "notes": list(self.notes),
            "failed": list(self.failed),
        }


def _summary(run: ModuleRun) -> Mapping[str, Any]:
    first = None if run.first is None else run.modules[run.first].name
    return {"backend": run.backend, "path": run.path, "passed": bool(run), "first": first}
