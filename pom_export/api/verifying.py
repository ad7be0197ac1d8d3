"""Verify: compare an exported model with PyTorch, and write the report."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pom_export.api.arguments import check_bounds
from pom_export.api.expecting import Expected
from pom_export.api.expecting_quantized import as_it_is, quantized_file
from pom_export.api.progress import Progress, silent
from pom_export.api.references import Reference
from pom_export.api.verifying_quantized import engine_to_compare, to_compare, with_products
from pom_export.engine.build_config import FUNCTION
from pom_export.engine.manifest import manifest_path
from pom_export.errors import InputError, only_ours
from pom_export.files import staged_output
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.function_check import check_functions
from pom_export.parity import tolerances
from pom_export.parity.backends import check_backends, offered
from pom_export.parity.candidates import KERNEL, Candidate
from pom_export.parity.inputs import Inputs
from pom_export.parity.judging import half_notes, judge, own_error_notes
from pom_export.parity.origin import origin_of
from pom_export.parity.own_precision import openvino_note
from pom_export.parity.page import render_page
from pom_export.parity.recording import recording_path
from pom_export.parity.report import ParityReport, inconclusive_notes
from pom_export.runtime.ort_format import as_onnx
from pom_export.stages import logged

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples


_LOG = logging.getLogger(__name__)


@only_ours
def verify(
    model: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    weights: str | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    engine: str | os.PathLike[str] | None = None,
    inputs: Inputs | None = None,
    module: nn.Module | None = None,
    example_inputs: Examples | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    backends: Sequence[str] | None = None,
    seed: int = 0,
    report: str | os.PathLike[str] | None = None,
    locate: bool = False,
    progress: Progress = silent,
) -> ParityReport:
    """Compare an exported model with PyTorch on every backend that runs here.

    Args:
        model: the ONNX file.
        checkpoint: the reference; None: the parity data saved at export.
        weights: which of several sets of weights in the checkpoint to compare with; default: the one that was exported.
        family: the checkpoint's family, if it follows neither from shapes nor from the model's metadata. The same holds
            for the next three parameters; see `load_checkpoint`.
        degree: degree of the polynomials.
        heads: number of attention heads of a hybrid.
        in_context_start: for an image model.
        engine: an engine of the model, compared if there is a GPU.
        inputs: a .npz, or arrays by name, to compare on instead of random and edge cases. If they include the model's
            outputs, by name, these are the reference and no checkpoint is needed.
        module: the reference instead of a checkpoint: one of our models, or any other with example inputs.
        example_inputs: inputs for a module of another class, in the form that `export` takes. The module is run in
            float64 on them, and on their values at other sizes where the file's dimensions are dynamic.
        rtol: bound relative to the largest magnitude of the reference output; default: depends on the model's type.
        atol: absolute bound; default: depends on the model's type.
        backends: names of the backends to compare on, besides the engine: "onnxruntime", "openvino", "onnxruntime-web"
            and "onnxruntime-node"; None: all that are installed.
        seed: seed of the random inputs.
        report: path of an HTML report; None: no report is written.
        locate: whether to compare every module too, and name the first that is out of tolerance; see `debug`.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Returns:
        A report, which is truthy if every output of every backend is within tolerance.

    Raises:
        InputError: a file is unusable, a function in it does not compute what its node asks for (with `locate`, that
            is a failure in the report), the checkpoint belongs to another model, or the report cannot be written.
    """
    hints = {"weights": weights, "family": family, "degree": degree, "heads": heads}
    hints["in_context_start"] = in_context_start
    check_bounds(rtol, atol)
    check_backends(backends)
    reference = Reference(checkpoint, module, example_inputs, inputs, seed, hints)
    reference.check()
    progress = logged(progress, _LOG)
    with ExitStack() as stack:
        file = stack.enter_context(as_onnx(model))
        exported = read_model(file)
        sources = [model, *exported.weights, recording_path(exported.path), checkpoint]
        sources += [] if isinstance(inputs, Mapping) else [inputs]
        sources += [] if engine is None else [engine, manifest_path(engine)]
        # Opened first, so that an unwritable report is found before the comparison, not after.
        page = None if report is None else stack.enter_context(staged_output(report, *sources))
        expected = reference.expected(exported)
        compared = [model, *exported.weights, *(path for path in (checkpoint, engine) if path is not None)]
        quantized = quantized_file(exported, expected)
        expected = quantized.expected if quantized else as_it_is(exported, expected, given=rtol is not None)
        its_engine, not_run = engine_to_compare(engine, exported, quantized)
        with to_compare(exported, quantized) as its_outputs:
            outcome = _compare(its_outputs, expected, its_engine, backends, (rtol, atol), progress, located=locate)
        outcome = replace(outcome, not_run=not_run or outcome.not_run)
        if quantized is not None:
            outcome = with_products(outcome, exported, quantized, progress)
        if locate:
            from pom_export.api.debugging import locate as locate_module

            wrong = quantized.wrong_weights if quantized else ()
            outcome = replace(outcome, located=locate_module(exported, expected, engine, None, progress, wrong))
        outcome = replace(outcome, model=os.fspath(model), origin=origin_of(map(Path, compared)))
        if file != Path(model):
            note = "the file is in ONNX Runtime's own format; ONNX Runtime's conversion of it was compared"
            outcome = replace(outcome, notes=[*outcome.notes, note])
        if page is not None:
            _write_page(outcome, page)
    return outcome


def _compare(
    model: ExportedModel,
    expected: Expected,
    engine: str | os.PathLike[str] | None,
    backends: Sequence[str] | None,
    bounds: tuple[float | None, float | None],
    progress: Progress,
    *,
    located: bool,
) -> ParityReport:
    """Compare a model's outputs with the expected ones on every backend, and return the report without its origin.

    Args:
        model: the ONNX file.
        expected: the cases, and their outputs in the reference.
        engine: an engine of the model to compare too, or None.
        backends: the other backends' names; None: all that are installed.
        bounds: rtol and atol as the user gave them.
        progress: called with one line per stage.
        located: whether modules are compared too, which shows where a function is wrong; else, that is an error.
    """
    candidates, how, not_run = offered(model, backends)
    of_functions, faults = _check_functions(model, candidates, located=located)
    notes = [*expected.notes, *of_functions, *how]
    _add_engine(engine, model, candidates, not_run)
    if not candidates:
        raise InputError(f"no backend here can run {model.path}: {'; '.join(not_run)}", "Use a machine with a GPU")
    tolerance = tolerances.bounded(expected.precision, *bounds)
    precision = expected.precision if bounds == (None, None) else "custom"
    notes += half_notes(precision, expected.targets)
    if model.inlined and not model.aggregations:
        notes.append("the file is inlined: standard operators compute its aggregations, and no kernel of ours")
    elif not model.aggregations:
        notes.append("no node in the file is one of our ops: it uses only standard operators")
    rounding = tolerances.bounds_of(precision, own=expected.own)
    found = judge(
        model,
        candidates,
        expected.cases,
        expected.targets,
        tolerance,
        rounding,
        own=expected.own,
        names=expected.names,
        progress=progress,
    )
    ran = {(each.backend, each.path) for each in found.comparisons}
    for candidate in found.candidates:
        if (candidate.backend, candidate.path_taken()) in ran:
            notes += _kernels_note(candidate, len(model.aggregations))
    notes += openvino_note(model, candidates, expected.cases, expected.targets, tolerance, rounding, expected.names)
    notes += [*inconclusive_notes(found.comparisons), *own_error_notes(found.comparisons)]
    return ParityReport(
        os.fspath(model.path),
        expected.reference,
        precision,
        found.comparisons,
        [*not_run, *found.unable],
        notes,
        [*faults, *found.failed],
    )


def _check_functions(
    model: ExportedModel, candidates: Sequence[Candidate], *, located: bool
) -> tuple[list[str], list[str]]:
    """Check the functions in the file if a candidate runs them; return notes on those that can't be, and the faults."""
    if not any(candidate.path == FUNCTION for candidate in candidates):
        return [], []
    try:
        # Reads the file again: otherwise the graph and its weights would stay in memory during the comparison.
        return [f"{why}: its function was compared in the model alone" for why in check_functions(model.path)], []
    except InputError as error:
        if not located:
            raise
        return [], [error.what]


def _add_engine(
    engine: str | os.PathLike[str] | None, model: ExportedModel, candidates: list[Candidate], not_run: list[str]
) -> None:
    """Add the engine as a candidate, or note why it is not compared."""
    if engine is None:
        not_run.append("tensorrt: no engine was given (`engine`)")
        return
    from pom_export.engine.given import given_engine

    given = given_engine(engine, model)
    if given.not_run:
        not_run.append(given.not_run)
    else:
        candidates.append(Candidate(given.backend.name, given.path, given.runner()))


def _kernels_note(candidate: Candidate, aggregations: int) -> list[str]:
    """Note that some aggregations did not run in our kernels, or that this is unknown."""
    ran = candidate.kernels_run()
    if candidate.path != KERNEL or ran == aggregations:
        return []
    if ran is None:
        return [f"{candidate.backend}: it is not known whether our kernels ran, because its profile cannot be read"]
    return [f"{candidate.backend}: of {aggregations} aggregations, {ran} ran in our kernels"]


@only_ours
def write_report(report: ParityReport, path: str | os.PathLike[str]) -> None:
    """Write a report as one self-contained HTML page.

    Raises:
        InputError: the page cannot be written there.
    """
    with staged_output(path) as staged:
        _write_page(report, staged)


def _write_page(report: ParityReport, file: Path) -> None:
    file.write_text(render_page(report), encoding="utf-8", errors="backslashreplace")
