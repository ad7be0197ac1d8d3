"""Walk a file's modules on every backend that runs here, and judge them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from pom_export.debugging.bounds import UNITS, bound_for
from pom_export.debugging.calls import Call
from pom_export.debugging.reference import WatchedReference
from pom_export.debugging.tapped_engine import TappedEngine
from pom_export.debugging.tapping import Tapped, TappedModel
from pom_export.debugging.walk import Found, Precision, values_of, walk
from pom_export.engine.given import GivenEngine
from pom_export.errors import PomExportError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.module_values import ModuleValues
from pom_export.graph.precisions import PRECISIONS
from pom_export.parity.candidates import Candidate, onnxruntime_candidates, unrounded_candidates
from pom_export.parity.case import Case, widened
from pom_export.parity.modules import ModuleResult, ModuleRun
from pom_export.parity.names import Names

# The cases that modules are compared on, if a comparison has them: as many as the others are likely to add nothing to.
_CASES: Final = ("typical", "example inputs", "a fully masked row", "tiny values", "beyond both clamps", "odd sizes")
_MOST_CASES: Final = 2
# The most numbers in a case's inputs.
_MOST_NUMBERS: Final = 2**18
UNCERTAIN: Final = "an input of it is not in the graph: its error includes that of the modules before it"


@dataclass(frozen=True)
class Located:
    """The runs of a file's modules.

    Attributes:
        runs: one per backend and path.
        failed: what should have run but did not, each with the reason.
        not_run: what can't run here.
    """

    runs: Sequence[ModuleRun]
    failed: Sequence[str]
    not_run: Sequence[str]


def walk_file(
    model: ExportedModel,
    reference: WatchedReference,
    cases: Sequence[Case],
    names: Names,
    precision: str,
    *,
    engine: GivenEngine | None,
    own: bool,
    rtol: float | None,
    progress: Callable[[str], None],
) -> Located:
    """Compare a file's modules with PyTorch's on each backend.

    Args:
        model: the file.
        reference: the model.
        cases: inputs to choose from.
        names: the file's names of inputs.
        precision: the type that the file is judged by.
        engine: an engine of it to compare too, or None.
        own: whether the model is of a user's own class.
        rtol: the bound on each module's own error; None: from the table of tolerances.
        progress: called with one line per backend.

    Raises:
        InputError: the reference fails, or no backend runs the file.
    """
    chosen = few(cases)
    graph = ModuleValues(_renamed(load_graph(model.path), reference.names), set(reference.names.values()))
    candidates, not_run = onnxruntime_candidates(model)
    every = [*(unrounded_candidates(model, candidates) if precision != PRECISIONS[0] else ()), *candidates]
    values = {name for case in chosen for name in values_of(graph, reference, case)}
    ways: list[tuple[Candidate, AbstractContextManager[Tapped]]]
    ways = [(each, TappedModel(model.path, values, each)) for each in every]
    if engine is not None and engine.not_run:
        not_run.append(engine.not_run)
    elif engine is not None:
        candidate = Candidate(engine.backend.name, engine.path, engine.runner())
        ways.append((candidate, TappedEngine(engine, values, progress)))
    runs, failed = [], []
    error: PomExportError | None = None
    for candidate, tapping in ways:
        progress(f"{candidate.backend} ({candidate.path}): {len(reference.kinds)} modules, {len(chosen)} cases")
        known = reference.has_files_weights
        bound = bound_for(precision, rounds=candidate.rounds, own=own, rtol=rtol, weights_known=known)
        unit = UNITS[precision if candidate.rounds else PRECISIONS[0]]
        how = Precision(bound, unit, rounded=not candidate.rounds)
        try:
            with tapping as tapped:
                found = [
                    walk(graph, tapped, reference, case if candidate.rounds else widened(case), how, names.inputs)
                    for case in chosen
                ]
        except PomExportError as raised:
            error = raised
            failed.append(f"{candidate.backend} ({candidate.path}): {raised.what}")
            continue
        runs.append(run_of(candidate, found, reference.kinds))
    if not runs and error is not None:
        raise error
    return Located(runs, failed, not_run)


def few(cases: Sequence[Case]) -> list[Case]:
    """Return the few cases to walk on: single calls of moderate sizes."""
    single = [case for case in cases if not case.cuts]
    small = [case for case in single if _size(case) <= _MOST_NUMBERS]
    known = sorted((case for case in small if case.name in _CASES), key=lambda case: _CASES.index(case.name))
    others = sorted((case for case in small if case.name not in _CASES), key=_size)
    return [*known, *others][:_MOST_CASES] or single[:1]


def _size(case: Case) -> int:
    return sum(array.size for array in case.feed.values())


def _renamed(model: ir.Model, names: Mapping[str, str]) -> ir.Model:
    """Name nodes after a module's first name, if they have another of its names."""
    others = {name: first for name, first in names.items() if name != first}
    for node in model.graph if others else ():
        path, slash, rest = (node.name or "").partition("/")
        if slash and path in others:
            node.name = f"{others[path]}/{rest}"
    return model


def run_of(candidate: Candidate, cases: Sequence[Mapping[Call, Found]], kinds: Mapping[str, str]) -> ModuleRun:
    """Judge the calls of all cases, each by the one on which it is worst."""
    worst: dict[Call, Found] = {}
    for found in cases:
        for call, each in found.items():
            if call not in worst or each.share > worst[call].share:
                worst[call] = each
    modules = [_result(call, found, kinds) for call, found in worst.items()]
    wrong = [index for index, each in enumerate(modules) if not each.passed]
    certain = [index for index in wrong if not modules[index].reason]
    return ModuleRun(candidate.backend, candidate.path, modules, next(iter(certain or wrong), None))


def _result(call: Call, found: Found, kinds: Mapping[str, str]) -> ModuleResult:
    reason = found.reason or ("" if found.certain else UNCERTAIN)
    return ModuleResult(
        call.module or kinds[""],
        kinds.get(call.module, ""),
        call.index,
        found.error_in,
        found.error_out,
        found.error,
        found.tolerance,
        found.case,
        reason,
        passed=found.share <= 1.0,
        axes=found.axes,
    )
