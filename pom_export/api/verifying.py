"""Verify: compare an exported model with PyTorch, and write the report."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pom_export.api.progress import Progress, silent
from pom_export.errors import InputError
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported import ExportedModel, read_model
from pom_export.parity import tolerances
from pom_export.parity.inputs import cases_from_npz, make_cases
from pom_export.parity.recording import load_recording, recording_path
from pom_export.parity.report import ParityReport
from pom_export.parity.tolerances import Tolerance
from pom_export.parity.verification import (
    PLUGIN,
    Candidate,
    compare,
    onnxruntime_candidates,
    record,
    tensor_metadata,
)
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
        progress: called with one line a stage.

    Returns:
        A report; truthy when every output of every backend is within tolerance.

    Raises:
        InputError: a file is not usable, or the checkpoint is of another model.
    """
    exported = read_model(model)
    tolerance, precision = _tolerance(exported.precision, rtol, atol)
    metadata = tensor_metadata(exported.inputs)
    if checkpoint is not None:
        reference_module = _reference_module(exported, checkpoint)
        if inputs is None:
            cases = list(make_cases(exported.inputs, exported.limits, seed))
        else:
            cases = cases_from_npz(inputs, exported.inputs, exported.limits)
        names = [spec.name for spec in exported.outputs]
        recordings = record(torch_runner(reference_module, names, metadata, "PyTorch"), cases)
        reference = f"PyTorch in float64, weights of {checkpoint}"
    else:
        if inputs is not None:
            raise InputError("--inputs needs a reference to run them through", "Give --checkpoint")
        cases, recordings = load_recording(recording_path(exported.path), sha256_of(exported.path))
        reference = f"PyTorch in float64, recorded in {recording_path(exported.path)}"

    candidates, not_run = onnxruntime_candidates(exported)
    _add_engine(engine, candidates, not_run)
    if not candidates:
        raise InputError(f"no backend here can run {exported.path}: {'; '.join(not_run)}", "Use a machine with a GPU")
    comparisons = []
    for candidate in candidates:
        progress(f"{candidate.backend} ({candidate.path}): {len(cases)} cases")
        runner = recorded_runner(recordings, metadata, "PyTorch")
        comparisons += compare(runner, candidate, cases, tolerance)
    return ParityReport(os.fspath(model), reference, precision, comparisons, not_run)


def _reference_module(exported: ExportedModel, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """Return the module whose outputs the model should have, in float64."""
    from pom_export.checkpoint import load_model
    from pom_export.checkpoint.spec import V1
    from pom_export.graph.program import GraphOptions, program_of
    from pom_export.graph.reference import Float64Module

    # What a v1 checkpoint's shapes don't tell, the exported file does.
    config = exported.spec.get("config", {})
    v1 = str(exported.spec.get("family", "")).startswith(V1)
    loaded = load_model(checkpoint, degree=config.get("degree") if v1 else None)
    if exported.properties.get("spec") != loaded.spec.to_json():
        raise InputError(
            f"{checkpoint} is a {loaded.spec.summary()}; the model was exported from another",
            "Name the checkpoint that was exported",
        )
    names = {spec.name for spec in exported.inputs}
    options = GraphOptions(exported.properties.get("mask") or None, "context" in names, "positions" in names)
    return Float64Module(program_of(loaded.module, options).module)


def _add_engine(engine: str | os.PathLike[str] | None, candidates: list[Candidate], not_run: list[str]) -> None:
    """Add the engine as a candidate, or say why it is not compared."""
    from pom_export.engine.backend import gpu_present

    if engine is None:
        not_run.append("tensorrt: no engine was named (--engine)")
        return
    from pom_export.engine.runner import engine_backend, engine_runner

    backend = engine_backend(engine)
    if not gpu_present():
        not_run.append(f"{backend.name}: {Path(engine).name} needs a GPU, and none is here")
        return
    candidates.append(Candidate(backend.name, PLUGIN, engine_runner(engine, backend, f"{backend.name} {PLUGIN}")))


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
    from pom_export.parity.page import render_page

    with staged_output(path) as staged:
        staged.write_text(render_page(report), encoding="utf-8")
