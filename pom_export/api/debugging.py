"""Debug: find the first module of an exported model whose outputs differ from PyTorch's, and why."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import onnx_ir as ir

from pom_export.api.arguments import check_bounds
from pom_export.api.expecting import Expected
from pom_export.api.expecting_quantized import quantized_file
from pom_export.api.progress import Progress, silent
from pom_export.api.references import Reference
from pom_export.debugging.causes import cause_of, first_run, innermost
from pom_export.debugging.differences import common_differences, differences
from pom_export.debugging.locate import Located, few, walk_file
from pom_export.debugging.quantized_weights import in_float
from pom_export.debugging.reference import WatchedReference
from pom_export.debugging.two_files import walk_files
from pom_export.engine.given import given_engine
from pom_export.engine.manifest import manifest_path
from pom_export.errors import InputError, PomExportError, only_ours
from pom_export.files import staged_output
from pom_export.graph.exported_model import PRECISIONS, ExportedModel, read_model
from pom_export.graph.function_check import check_functions
from pom_export.graph.loading import load_graph
from pom_export.graph.module_values import ModuleValues
from pom_export.parity.candidates import onnxruntime_candidates
from pom_export.parity.case import Case, widened
from pom_export.parity.inputs import Inputs, case_of, make_cases
from pom_export.parity.modules import DebugReport, FileDifference, ModuleRun
from pom_export.parity.modules_page import render_debug
from pom_export.parity.names import match_names
from pom_export.parity.precision import judged_precision
from pom_export.runtime.ort_format import as_onnx
from pom_export.stages import logged

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples
    from pom_export.graph.program import Program
    from pom_export.graph.tracing import Traced

_LOG = logging.getLogger(__name__)
_ONLY_THE_WHOLE: Final = (
    "no module inside the model was compared, only the model itself: the file's nodes are not named after its modules"
)
_REWRITTEN: Final = "another tool has rewritten the graph: only values were compared, not the nodes"


@only_ours
def debug(
    model: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    module: nn.Module | None = None,
    example_inputs: Examples | None = None,
    against: str | os.PathLike[str] | None = None,
    engine: str | os.PathLike[str] | None = None,
    inputs: Inputs | None = None,
    rtol: float | None = None,
    seed: int = 0,
    report: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> DebugReport:
    """Find the first module of an exported model whose outputs differ from the reference's, and the likely cause.

    Every module is compared by the name that the user gave it, in one run of the file, on the inputs that it has in the
    file: an error that it only passes on does not count as its own.

    Args:
        model: the ONNX file.
        checkpoint: the reference.
        weights: which of several sets of weights in the checkpoint to compare with; see `verify`.
        family: the checkpoint's family, if it cannot be recognised. The same holds for the next three parameters; see
            `load_checkpoint`.
        degree: degree of the polynomials.
        heads: number of attention heads of a hybrid.
        in_context_start: for an image model.
        module: the reference instead of a checkpoint: one of our models, or any other with example inputs.
        example_inputs: inputs for a module of another class, in the form that `export` takes.
        against: the reference instead of a checkpoint: another ONNX file of the same model. This needs no torch.
        engine: an engine of the model, compared too if there is a GPU: it is built again with the values between
            modules as outputs.
        inputs: a .npz, or arrays by name, to compare on instead of random inputs.
        rtol: bound on each module's own error, relative to the largest magnitude of its outputs; default: depends on
            the types that it computes in.
        seed: seed of the random inputs.
        report: path of an HTML report; None: no report is written.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Returns:
        A report, which is truthy if modules were compared and nothing differs.

    Raises:
        InputError: a file is unusable, there is no reference, or the checkpoint belongs to another model.
    """
    hints = {"weights": weights, "family": family, "degree": degree, "heads": heads}
    hints["in_context_start"] = in_context_start
    check_bounds(rtol, None)
    reference = Reference(checkpoint, module, example_inputs, inputs, seed, hints)
    reference.check()
    references = [each for each in (checkpoint, module, against) if each is not None]
    if len(references) != 1:
        raise InputError(
            f"{'no' if not references else 'more than one'} reference is given to compare {os.fspath(model)} with",
            "Give one of `checkpoint` and `against`",
        )
    if engine is not None and against is not None:
        raise InputError("`engine` is compared with PyTorch, not with another file", "Give `checkpoint`")
    progress = logged(progress, _LOG)
    with ExitStack() as stack:
        exported = read_model(stack.enter_context(as_onnx(model)))
        sources = [model, *exported.weights, checkpoint, against]
        sources += [] if engine is None else [engine, manifest_path(engine)]
        sources += [] if isinstance(inputs, Mapping) else [inputs]
        page = None if report is None else stack.enter_context(staged_output(report, *sources))
        if against is not None:
            other = read_model(stack.enter_context(as_onnx(against)))
            outcome = _two_files(exported, other, inputs, rtol, seed, progress)
        else:
            expected = reference.expected(exported)
            wrong: Sequence[FileDifference] = ()
            if (quantized := quantized_file(exported, expected)) is not None:
                expected, wrong = quantized.expected, quantized.wrong_weights
            outcome = locate(exported, expected, engine, rtol, progress, wrong)
        outcome = replace(outcome, model=os.fspath(model))
        if page is not None:
            page.write_text(render_debug(outcome), encoding="utf-8", errors="backslashreplace")
    return outcome


def locate(
    model: ExportedModel,
    expected: Expected,
    engine: str | os.PathLike[str] | None,
    rtol: float | None,
    progress: Progress,
    wrong: Sequence[FileDifference] = (),
) -> DebugReport:
    """Compare every module of a file with PyTorch's.

    Args:
        model: the file.
        expected: its reference, which must be a model.
        engine: an engine of the file to compare too, or None.
        rtol: the bound on each module's own error; None: from the table of tolerances.
        progress: called with one line per stage.
        wrong: quantized weights that are known to be wrong; modules are compared with these weights on both sides.

    Raises:
        InputError: the reference is no model but recorded outputs, or no backend runs the file.
    """
    if expected.program is None:
        raise InputError(f"only outputs are known for {model.path}, not the model", "Give `checkpoint`")
    reference = WatchedReference(model, expected.program, expected.precision, expected.weights)
    located = walk_file(
        model, reference, expected.cases, expected.names, expected.precision,
        engine=None if engine is None else given_engine(engine, model), own=expected.own, rtol=rtol, progress=progress,
    )  # fmt: skip
    graph = ModuleValues(load_graph(model.path), set(reference.names.values()))
    progress("exporting the model again, to compare nodes and weights")
    differing = _differences(model, graph, expected)
    listed = {each.module for each in differing.found}
    differing = replace(differing, found=[*differing.found, *(each for each in wrong if each.module not in listed)])
    notes = [*expected.notes, *differing.notes]
    return _report(model, expected.reference, graph, located, differing, notes, reference.kinds[""], expected.cases)


def _report(
    model: ExportedModel,
    reference: str,
    graph: ModuleValues,
    located: Located,
    differing: _Differences,
    notes: Sequence[str],
    root: str,
    cases: Sequence[Case],
) -> DebugReport:
    """Name the first module that is wrong, and the cause.

    Args:
        model: the file.
        reference: description of what it was compared with.
        graph: its modules.
        located: the comparisons.
        differing: nodes and weights that differ.
        notes: remarks.
        root: what the model itself is called.
        cases: the inputs.
    """
    run = first_run(located.runs)
    wrong = run.modules[run.first or 0].name if run is not None else None
    evidence = differing.found or differing.hints
    module = None if wrong is None else innermost("" if wrong == root else wrong, evidence)
    if module is None and differing.found:
        module = differing.found[0].module
    fault, fault_notes = _function_fault(model)
    cause = ""
    if module is not None:
        candidates, _ = onnxruntime_candidates(model)
        case = next(iter(few(cases)), None)
        cause = cause_of(model, graph, located.runs, evidence, module, case, candidates, fault)
    return DebugReport(
        os.fspath(model.path),
        reference,
        None if module is None else module or root,
        cause,
        located.runs,
        differing.found,
        located.not_run,
        [*notes, *fault_notes, *([] if any(map(_has_inner, located.runs)) else [_ONLY_THE_WHOLE])],
        [*located.failed, *([fault] if fault and module is None else [])],
    )


def _has_inner(run: ModuleRun) -> bool:
    """Return whether a module other than the model itself was compared; the model's call is the last to end."""
    return any(each.compared for each in run.modules[:-1])


@dataclass(frozen=True)
class _Differences:
    """How the nodes and weights of a file differ.

    Attributes:
        found: what differs, which counts as a failure.
        hints: what differs in a graph that another tool has rewritten, which only explains errors.
        notes: remarks.
    """

    found: Sequence[FileDifference] = ()
    hints: Sequence[FileDifference] = ()
    notes: Sequence[str] = ()


def _differences(model: ExportedModel, graph: ModuleValues, expected: Expected) -> _Differences:
    """Compare a file's nodes and weights with those of a fresh export of its reference."""
    if expected.trace is None:
        return _Differences()
    try:
        program, traced = expected.trace(model.opset)
        found: list[list[FileDifference]] = []
        hints: list[tuple[int, list[FileDifference]]] = []
        for optimize in (True, False):
            # The passes change the graph.
            copied = replace(traced, graph=traced.graph.clone())
            exported = _exported(model, program, copied, expected.cases, optimize=optimize)
            given, wanted = _comparable(model, exported, graph.modules)
            differing = differences(given, wanted)
            if differing is None:
                hints.append((len(given.names & wanted.names), common_differences(given, wanted)))
                continue
            found.append(list(dict.fromkeys(differing)))  # a weight may be used by several nodes
            if not any(each.kind == "operator" for each in differing):
                break
    except PomExportError as error:
        return _Differences(
            notes=[f"nodes and weights were not compared: the model can't be exported again: {error.what}"]
        )
    if found:
        return _Differences(min(found, key=len))
    _, closest = max(hints, key=lambda each: each[0])
    return _Differences(hints=closest, notes=[_REWRITTEN])


def _comparable(model: ExportedModel, wanted: ir.Model, modules: Collection[str]) -> tuple[ModuleValues, ModuleValues]:
    """Return a file's graph and the one that it should be, with the file's products in float32 if only they are not."""
    given = load_graph(model.path)
    in_float(given, wanted)
    return ModuleValues(given, modules), ModuleValues(wanted, modules)


def _exported(
    model: ExportedModel, program: Program, traced: Traced, cases: Sequence[Case], *, optimize: bool
) -> ir.Model:
    from pom_export.graph.inlining import inline_functions
    from pom_export.graph.tracing import export_graph
    from pom_export.parity.peaks import observe_peaks

    feeds = [widened(case).feed for case in few(cases)]
    graph = export_graph(
        program,
        model.opset,
        {},
        optimize=optimize,
        dtype=model.precision,
        keep_float32=model.keep_float32,
        observe=lambda graph: observe_peaks(graph, feeds),
        traced=traced,
    )
    if model.inlined and not model.aggregations:
        inline_functions(graph)
    return graph


def _function_fault(model: ExportedModel) -> tuple[str, list[str]]:
    """Return what is wrong with a function in the file, and notes on those that can't be checked."""
    try:
        return "", [f"{why}: its function was compared in the model alone" for why in check_functions(model.path)]
    except InputError as error:
        return error.what, []


def _two_files(
    model: ExportedModel, other: ExportedModel, inputs: Inputs | None, rtol: float | None, seed: int, progress: Progress
) -> DebugReport:
    """Compare the modules of a file with those of another file."""
    names = match_names(other, "input", other.inputs, model.inputs)
    precisions = [judged_precision(each)[0] for each in (model, other)]
    precision = max(precisions, key=PRECISIONS.index)
    if inputs is None:
        cases = list(make_cases(model.inputs, model.limits, seed))
    else:
        cases = [case_of(inputs, model.inputs, model.limits)]
    located = walk_files(model, other, cases, names, precision, rtol=rtol, progress=progress)
    graphs = [ModuleValues(load_graph(each.path)) for each in (model, other)]
    graph = ModuleValues(load_graph(model.path), graphs[0].modules & graphs[1].modules)
    differing = _Differences()
    if precisions[0] != precisions[1]:
        note = f"nodes and weights were not compared: one file is {precisions[0]}, the other {precisions[1]}"
        differing = _Differences(notes=[note])
    else:
        given, wanted = _comparable(model, load_graph(other.path), graph.modules)
        found = differences(given, wanted)
        if found is None:
            differing = _Differences(hints=common_differences(given, wanted), notes=[_REWRITTEN])
        else:
            differing = _Differences(found)
    root = located.runs[0].modules[-1].name
    return _report(model, f"the file {other.path}", graph, located, differing, differing.notes, root, cases)
