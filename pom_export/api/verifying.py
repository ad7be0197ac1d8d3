"""The toolkit's functions, whole jobs each: what `import pom_export` offers and the command line calls."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported import PRECISIONS, ExportedModel, read_model
from pom_export.parity import tolerances
from pom_export.parity.inputs import Case, cases_from_npz, make_cases
from pom_export.parity.recording import load_recording, recording_path, save_recording
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
    from torch import Tensor, nn

    from pom_export.checkpoint import ModelSpec
    from pom_export.graph.program import GraphOptions, Program

Progress = Callable[[str], None]
_CASES_AT_EXPORT = 2


def _silent(_: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class ExportResult:
    """The outcome of `export`.

    Attributes:
        model: path of the ONNX file.
        opset: version of the standard ops.
        aggregations: number of aggregation nodes.
        inputs: name, dtype and axes of each input.
        outputs: the same of each output.
        bytes: size of the file (and of its external weights, if any).
        sha256: of the file.
        checked: backends on which the outputs were compared with PyTorch's.
    """

    model: str
    opset: int
    aggregations: int
    inputs: list[str]
    outputs: list[str]
    bytes: int
    sha256: str
    checked: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def export(
    model: str | os.PathLike[str] | nn.Module,
    output: str | os.PathLike[str],
    *,
    example_inputs: tuple[Tensor, ...] | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    mask: str | None = None,
    cross: bool = False,
    static: tuple[int, int] | None = None,
    dtype: str = "float32",
    opset: int | None = None,
    samples: int = 0,
    progress: Progress = _silent,
) -> ExportResult:
    """Export a checkpoint or a module to ONNX, and compare it with PyTorch before the file appears.

    Args:
        model: a checkpoint's path, one of our models, or any module that contains our mixers.
        output: where the ONNX file goes.
        example_inputs: for a module of another class: what to trace it with.
        dynamic_shapes: for such a module: as torch.export takes them, by input.
        mask: "none", "causal", "padding" or "full"; default: the architecture's own.
        cross: give the mixer a separate context input.
        static: (batch, tokens) to pin; default: dynamic.
        dtype: "float32", "float16" or "bfloat16".
        opset: version of the standard ops; default: 20, or 22 for bfloat16.
        samples: number of inputs and outputs to save beside the model, for `verify` without the checkpoint.
        progress: called with one line a stage.

    Raises:
        InputError: the checkpoint, an option or the output is not usable.
        ParityError: outputs differ from PyTorch's; no file is written.
    """
    from pom_export.graph.exporter import check_opset, default_opset, export_graph, save_model
    from pom_export.graph.program import GraphOptions

    if dtype not in PRECISIONS:
        raise InputError(f"unknown dtype {dtype!r}", f"Choose one of {', '.join(PRECISIONS)}")
    opset = default_opset(dtype) if opset is None else opset
    check_opset(opset)
    checkpoint = model if isinstance(model, (str, os.PathLike)) else None
    with staged_output(output, checkpoint) as staged:
        source = _load(model, example_inputs, dynamic_shapes, GraphOptions(mask, cross, static), progress)
        progress(f"tracing, opset {opset}")
        program = source.program(_torch_dtype(dtype))
        graph = export_graph(program, opset, {**source.properties, "dtype": dtype})
        save_model(graph, staged)
        exported = read_model(staged)
        progress(f"{len(exported.aggregations)} aggregations; comparing with PyTorch")
        checked = _check(exported, source, program, samples)
        files = [file for file in staged.parent.iterdir() if not file.name.endswith(".npz")]
        return ExportResult(
            model=os.fspath(output),
            opset=exported.opset,
            aggregations=len(exported.aggregations),
            inputs=[str(spec) for spec in exported.inputs],
            outputs=[str(spec) for spec in exported.outputs],
            bytes=sum(file.stat().st_size for file in files),
            sha256=sha256_of(staged),
            checked=checked,
        )


@dataclass(frozen=True)
class _Source:
    """What is exported: makes its program in any floating-point type, from weights of its own."""

    module: nn.Module
    make_program: Callable[[nn.Module], Program]
    properties: Mapping[str, str]
    vocabulary: int | None
    from_examples: bool

    def program(self, dtype: Any) -> Program:
        return self.make_program(copy.deepcopy(self.module).to(dtype))


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _load(
    model: str | os.PathLike[str] | nn.Module,
    example_inputs: tuple[Tensor, ...] | None,
    dynamic_shapes: Mapping[str, Any] | None,
    options: GraphOptions,
    progress: Progress,
) -> _Source:
    from pom_export.checkpoint import load_model
    from pom_export.checkpoint.spec import spec_of
    from pom_export.graph.program import module_program, program_of

    if isinstance(model, (str, os.PathLike)):
        loaded = load_model(model)
        progress(f"recognised a {loaded.spec.summary()}")
        properties = {"spec": loaded.spec.to_json(), "source_sha256": loaded.sha256}
        return _Source(
            loaded.module, lambda module: program_of(module, options), properties, _vocabulary(loaded.spec), False
        )
    if example_inputs is None:
        spec = spec_of(model)
        return _Source(
            model,
            lambda module: program_of(module, options),
            {"spec": spec.to_json()} if spec else {},
            _vocabulary(spec),
            False,
        )

    def make_program(module: nn.Module) -> Program:
        dtype = next(module.parameters()).dtype
        examples = tuple(t.to(dtype) if t.is_floating_point() else t for t in example_inputs)
        return module_program(module, examples, dynamic_shapes)

    return _Source(model, make_program, {}, None, True)


def _vocabulary(spec: ModelSpec | None) -> int | None:
    return getattr(spec.config, "vocab_size", None) if spec else None


def _check(exported: ExportedModel, source: _Source, program: Program, samples: int) -> list[str]:
    """Compare the staged file with PyTorch; write the parity data; return the backends that were compared."""
    cases = list(make_cases(exported.inputs, source.vocabulary, seed=0))
    if source.from_examples:
        cases = [Case("example inputs", {name: tensor.numpy() for name, tensor in program.inputs.items()})]
    reference = source.program(_torch_dtype("float64")).module
    metadata = tensor_metadata(exported.inputs)
    names = [spec.name for spec in exported.outputs]

    if samples:
        chosen = cases[:samples]
        save_recording(
            recording_path(exported.path), chosen, record(torch_runner(reference, names, metadata, "PyTorch"), chosen)
        )
    candidates, _ = onnxruntime_candidates(exported)
    for candidate in candidates:
        runner = torch_runner(reference, names, metadata, "PyTorch")
        tolerance = tolerances.MODELS[exported.precision]
        for comparison in compare(runner, candidate, cases[:_CASES_AT_EXPORT], tolerance):
            if not comparison:
                worst = comparison.worst
                raise ParityError(
                    f"{comparison.output} of {comparison.backend} ({comparison.path}) differs from PyTorch by "
                    f"{worst.difference.max_abs:.3g} on {worst.case}, tolerance {worst.difference.tolerance:.3g}",
                    "No file was written",
                )
    return [f"{candidate.backend} {candidate.path}" for candidate in candidates]


def verify(
    model: str | os.PathLike[str],
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    engine: str | os.PathLike[str] | None = None,
    inputs: str | os.PathLike[str] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    progress: Progress = _silent,
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
    metadata = tensor_metadata(exported.inputs)
    if checkpoint is not None:
        reference_module = _reference_module(exported, checkpoint)
        cases = list(make_cases(exported.inputs, exported.vocabulary, seed))
        if inputs is not None:
            cases = cases_from_npz(inputs, exported.inputs)
        names = [spec.name for spec in exported.outputs]
        recordings = record(torch_runner(reference_module, names, metadata, "PyTorch"), cases)
        reference = f"PyTorch in float64, weights of {checkpoint}"
    else:
        if inputs is not None:
            raise InputError("--inputs needs a reference to run them through", "Give --checkpoint")
        cases, recordings = load_recording(recording_path(exported.path))
        reference = f"PyTorch in float64, recorded in {recording_path(exported.path)}"

    candidates, not_run = onnxruntime_candidates(exported)
    _add_engine(engine, candidates, not_run)
    if not candidates:
        raise InputError(f"no backend here can run {exported.path}: {'; '.join(not_run)}", "Use a machine with a GPU")
    tolerance, precision = _tolerance(exported.precision, rtol, atol)
    comparisons = []
    for candidate in candidates:
        progress(f"{candidate.backend} ({candidate.path}): {len(cases)} cases")
        runner = recorded_runner(recordings, metadata, "PyTorch")
        comparisons += compare(runner, candidate, cases, tolerance)
    return ParityReport(os.fspath(model), reference, precision, comparisons, not_run)


def _reference_module(exported: ExportedModel, checkpoint: str | os.PathLike[str]) -> nn.Module:
    """Return the module whose outputs the model should have, in float64."""
    from pom_export.checkpoint import load_model
    from pom_export.graph.program import GraphOptions, program_of

    loaded = load_model(checkpoint)
    if exported.properties.get("spec") != loaded.spec.to_json():
        raise InputError(
            f"{checkpoint} is a {loaded.spec.summary()}; the model was exported from another",
            "Name the checkpoint that was exported",
        )
    cross = any(spec.name == "context" for spec in exported.inputs)
    options = GraphOptions(exported.properties.get("mask") or None, cross)
    return program_of(loaded.module.double(), options).module


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


__all__: Sequence[str] = ["ExportResult", "export", "verify", "write_report"]
