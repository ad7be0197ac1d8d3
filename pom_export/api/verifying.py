"""Verify: compare an exported model with PyTorch, and write the report."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pom_export.api.progress import Progress, silent
from pom_export.engine.manifest import check_manifest, engine_path, manifest_path
from pom_export.errors import CheckpointError, InputError
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported import BLOCK_CAUSAL, ExportedModel, read_model
from pom_export.parity import tolerances
from pom_export.parity.inputs import Array, Case, cases_from_npz, make_cases
from pom_export.parity.page import render_page
from pom_export.parity.recording import load_recording, recording_path
from pom_export.parity.report import ParityReport
from pom_export.parity.tolerances import Tolerance
from pom_export.parity.verification import Candidate, compare, onnxruntime_candidates, record, tensor_metadata
from pom_export.runtime.runners import recorded_runner, torch_runner

if TYPE_CHECKING:
    from torch import nn


def verify(
    model: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    engine: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    report: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Compare an exported model with PyTorch on every backend that runs here.

    Args:
        model: the ONNX file.
        checkpoint: the reference; None: the parity data saved at export.
        engine: an engine of the model, compared where a GPU is.
        inputs: a .npz of inputs to compare on, instead of random and edge cases.
        rtol: bound relative to the largest magnitude of the reference output; default: by the model's type.
        atol: absolute bound; default: by the model's type.
        seed: of the random inputs.
        report: where the comparison goes as one HTML page; None: nowhere.
        progress: called with one line a stage.

    Returns:
        A report; truthy when every output of every backend is within tolerance.

    Raises:
        InputError: a file is not usable, the checkpoint is of another model, or the report cannot be written.
    """
    exported = read_model(model)
    tolerance, precision = _tolerance(exported.precision, rtol, atol)
    sources = [model, *exported.weights, recording_path(exported.path), checkpoint, inputs]
    sources += [] if engine is None else [engine, manifest_path(engine)]
    # Opened first: a place that takes no report is no reason to find out after the comparison.
    with nullcontext() if report is None else staged_output(report, *sources) as page:
        expected = _expected(exported, checkpoint, inputs, seed)
        candidates, not_run = onnxruntime_candidates(exported)
        _add_engine(engine, exported.path, candidates, not_run)
        if not candidates:
            raise InputError(
                f"no backend here can run {exported.path}: {'; '.join(not_run)}", "Use a machine with a GPU"
            )
        comparisons = []
        for candidate in candidates:
            progress(f"{candidate.backend} ({candidate.path}): {len(expected.cases)} cases")
            runner = recorded_runner(expected.outputs, tensor_metadata(exported.inputs), "PyTorch")
            comparisons += compare(runner, candidate, expected.cases, tolerance)
        outcome = ParityReport(os.fspath(model), expected.reference, precision, comparisons, not_run, expected.notes)
        if page is not None:
            _write_page(outcome, page)
    return outcome


@dataclass(frozen=True)
class _Expected:
    """What the model's outputs should be, case by case, and where that comes from."""

    cases: Sequence[Case]
    outputs: Sequence[Mapping[str, Array]]
    reference: str
    notes: Sequence[str] = ()


def _expected(
    exported: ExportedModel,
    checkpoint: str | os.PathLike[str] | None,
    inputs: str | os.PathLike[str] | None,
    seed: int,
) -> _Expected:
    if checkpoint is None:
        if inputs is not None:
            raise InputError("--inputs needs a reference to run them through", "Give --checkpoint")
        recording = recording_path(exported.path)
        cases, outputs = load_recording(recording, sha256_of(exported.path), exported.inputs, exported.outputs)
        return _Expected(cases, outputs, f"PyTorch in float64, recorded in {recording}")
    module, sha256 = _reference_module(exported, checkpoint)
    if inputs is None:
        cases = list(make_cases(exported.inputs, exported.limits, seed))
    else:
        cases = cases_from_npz(inputs, exported.inputs, exported.limits)
    names = [spec.name for spec in exported.outputs]
    outputs = record(torch_runner(module, names, tensor_metadata(exported.inputs), "PyTorch"), cases)
    return _Expected(
        cases, outputs, f"PyTorch in float64, weights of {checkpoint}", _notes(exported, checkpoint, sha256)
    )


def _notes(exported: ExportedModel, checkpoint: str | os.PathLike[str], sha256: str) -> list[str]:
    """Say when the weights come from another file than the model's: the same ones may be saved in many ways."""
    exported_from = exported.properties.get("source_sha256", sha256)
    if sha256 == exported_from:
        return []
    return [
        f"{checkpoint} is not the file that was exported: sha256 {sha256[:12]}, the model's is {exported_from[:12]}"
    ]


def _reference_module(exported: ExportedModel, checkpoint: str | os.PathLike[str]) -> tuple[nn.Module, str]:
    """Return the module whose outputs the model should have, in float64, and its checkpoint's sha256."""
    from pom_export.checkpoint import load_model
    from pom_export.checkpoint.spec import V1
    from pom_export.graph.program import GraphOptions
    from pom_export.graph.programs import program_of
    from pom_export.graph.reference import Float64Module

    # What a v1 checkpoint's shapes don't tell, the exported file does.
    config = exported.spec.get("config", {})
    v1 = str(exported.spec.get("family", "")).startswith(V1)
    hints = {"degree": config.get("degree") if v1 else None, "heads": config.get("attention_heads")}
    try:
        loaded = load_model(checkpoint, **hints)
    except CheckpointError as error:
        was = f"a {exported.spec.get('architecture', 'model')} of family {exported.spec.get('family', 'unknown')}"
        raise InputError(
            f"{checkpoint} does not fit the model, which was exported from {was}: {error.what}",
            "Name the checkpoint that was exported",
        ) from error
    if exported.properties.get("spec") != loaded.spec.to_json():
        raise InputError(
            f"{checkpoint} is a {loaded.spec.summary()}; the model was exported from another",
            "Name the checkpoint that was exported",
        )
    names = {spec.name for spec in exported.inputs}
    options = GraphOptions(
        exported.properties.get("mask") or None,
        "context" in names,
        "positions" in names,
        stateful=bool(exported.stateful),
        block_causal=exported.stateful == BLOCK_CAUSAL,
    )
    return Float64Module(program_of(loaded.module, options).module), loaded.sha256


def _add_engine(
    engine: str | os.PathLike[str] | None, model: Path, candidates: list[Candidate], not_run: list[str]
) -> None:
    """Add the engine as a candidate, or say why it is not compared."""
    from pom_export.engine.backend import gpu_present

    if engine is None:
        not_run.append("tensorrt: no engine was named (--engine)")
        return
    from pom_export.engine.runner import engine_backend, engine_runner

    backend = engine_backend(engine)
    check_manifest(engine, model)
    if not gpu_present():
        not_run.append(f"{backend.name}: {Path(engine).name} needs a GPU, and none is here")
        return
    path = engine_path(engine)
    candidates.append(Candidate(backend.name, path, engine_runner(engine, backend, f"{backend.name} {path}")))


def _tolerance(precision: str, rtol: float | None, atol: float | None) -> tuple[Tolerance, str]:
    for name, bound in (("rtol", rtol), ("atol", atol)):
        if bound is not None and not 0 <= bound < math.inf:
            raise InputError(f"{name} must be finite and not negative, got {bound}", "Example: --rtol 1e-4")
    default = tolerances.MODELS[precision]
    if rtol is None and atol is None:
        return default, precision
    return Tolerance(
        default.relative if rtol is None else rtol, default.absolute if atol is None else atol, "given by the user"
    ), "custom"


def write_report(report: ParityReport, path: str | os.PathLike[str]) -> None:
    """Write a report as one self-contained HTML page.

    Raises:
        InputError: the page cannot be written there.
    """
    with staged_output(path) as staged:
        _write_page(report, staged)


def _write_page(report: ParityReport, file: Path) -> None:
    file.write_text(render_page(report), encoding="utf-8", errors="backslashreplace")
