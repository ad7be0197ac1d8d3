"""Name the first module that is wrong, and the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pom_export.debugging.tapping import TappedModel
from pom_export.errors import printable
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.module_values import CallValues, ModuleValues
from pom_export.graph.precisions import PRECISIONS
from pom_export.parity.candidates import KERNEL, UNROUNDED, Candidate, unrounded_candidates
from pom_export.parity.case import Case, widened
from pom_export.parity.modules import FileDifference, ModuleRun

_LARGEST: Final = {"float16": 65504.0, "bfloat16": 3.39e38}
_MOST_OPERATORS: Final = 4
FUNCTION_BODY: Final = "a function in the file computes something else than our kernel"


def first_run(runs: Sequence[ModuleRun]) -> ModuleRun | None:
    """Return the first run with a module out of tolerance; None if there is none."""
    return next((run for run in runs if run.first is not None), None)


def inside(differences: Sequence[FileDifference], module: str) -> list[FileDifference]:
    """Return the differences in a module, "" being the whole model."""
    return [each for each in differences if not module or f"{each.module}.".startswith(f"{module}.")]


def innermost(module: str, differences: Sequence[FileDifference]) -> str:
    """Return the module to name: that of the first difference inside the one whose outputs are wrong."""
    found = inside(differences, module)
    return found[0].module if found else module


def cause_of(
    model: ExportedModel,
    graph: ModuleValues,
    runs: Sequence[ModuleRun],
    differences: Sequence[FileDifference],
    module: str,
    case: Case | None,
    candidates: Sequence[Candidate],
    function_fault: str,
) -> str:
    """Return the likely cause of a module's error.

    Args:
        model: the file.
        graph: its modules.
        runs: its comparisons.
        differences: weights and nodes that differ from those of a fresh export.
        module: name of the module, "" for the model itself.
        case: inputs for which values can be looked at.
        candidates: the backends that the file was run on.
        function_fault: what is wrong with a function in the file; empty if nothing is.
    """
    run = first_run(runs)
    if found := inside(differences, module):
        return found[0].what + (f", and {len(found) - 1} more" if len(found) > 1 else "")
    if run is None:
        return function_fault
    result = run.modules[run.first or 0]
    if run.path != KERNEL and _passes_otherwise(runs, run, kernel=True):
        return function_fault or FUNCTION_BODY
    if result.axes:
        return result.axes
    if run.backend != UNROUNDED and _passes_otherwise(runs, run, kernel=False):
        return _precision(model, graph, module, case, candidates)
    return _operators(graph, module)


def _passes_otherwise(runs: Sequence[ModuleRun], run: ModuleRun, *, kernel: bool) -> bool:
    """Return whether the file is right in our kernels on the same backend, or without rounding on the same path."""
    if kernel:
        return any(other.backend == run.backend and other.path == KERNEL and other for other in runs)
    return any(other.backend == UNROUNDED and other for other in runs)


def _precision(
    model: ExportedModel, graph: ModuleValues, module: str, case: Case | None, candidates: Sequence[Candidate]
) -> str:
    precision = model.precision if model.precision in _LARGEST else PRECISIONS[1]
    limit = _LARGEST[precision]
    text = f"precision: without rounding to {precision} it is within tolerance"
    parts = graph.calls(module)
    wide = unrounded_candidates(model, candidates)
    if case is None or not parts or not wide:
        return text
    peak, where = _peak(model, parts[0], wide[0], case)
    if peak > limit:
        return f"precision: values reach {peak:.3g} in {printable(where)}, and {precision} ends at {limit:g}"
    return f"{text}; its values reach {peak:.3g} of {limit:g}"


def _peak(model: ExportedModel, part: CallValues, candidate: Candidate, case: Case) -> tuple[float, str]:
    """Return the largest magnitude of a module's inner values without rounding, and the node that makes it."""
    import numpy as np

    made = {value.name: node for node in part.nodes for value in node.outputs if value.name}
    with TappedModel(model.path, set(made), candidate) as tapped:
        values = tapped.run(made, widened(case).feed)
    peaks = [
        (float(np.abs(values[name][np.isfinite(values[name])]).max(initial=0.0)), node.name or node.op_type)
        for name, node in made.items()
        if values[name].dtype.kind == "f"
    ]
    return max(peaks, default=(0.0, ""))


def _operators(graph: ModuleValues, module: str) -> str:
    """Return the operators that a module computes itself, outside the modules in it."""
    own = [node for node, scope in graph.scopes.items() if scope == module]
    names = list(dict.fromkeys(node.op_type for node in own))
    if not names:
        return ""
    shown = ", ".join(printable(name) for name in names[:_MOST_OPERATORS])
    more = " and others" if len(names) > _MOST_OPERATORS else ""
    return f"the operator{'s' if len(names) > 1 else ''} {shown}{more}"
