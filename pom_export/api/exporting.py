"""Export: from a checkpoint or a module to an ONNX file that was compared with PyTorch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pom_export.api.progress import Progress, silent
from pom_export.api.side_files import check_recording_place, own_side_files
from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of, staged_output
from pom_export.graph.exported import PRECISIONS, ExportedModel, read_model
from pom_export.parity import tolerances
from pom_export.parity.inputs import Case, cases_from_example, make_cases
from pom_export.parity.recording import recording_path, save_recording
from pom_export.parity.verification import compare, onnxruntime_candidates, record, tensor_metadata
from pom_export.runtime.runners import run_module, to_numpy, torch_runner

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples, Source
    from pom_export.graph.program import Program

_CASES_AT_EXPORT = 2


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
    example_inputs: Examples | None = None,
    dynamic_shapes: Mapping[str, Any] | None = None,
    mask: str | None = None,
    cross: bool = False,
    positions: bool = False,
    static: tuple[int, int] | None = None,
    dtype: str = "float32",
    opset: int | None = None,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    samples: int = 0,
    progress: Progress = silent,
) -> ExportResult:
    """Export a checkpoint or a module to ONNX, and compare it with PyTorch before the file appears.

    Args:
        model: a checkpoint's path, one of our models, or any module that contains our mixers or official ones.
        output: where the ONNX file goes.
        example_inputs: for a module of another class: what to trace it with: tensors in the order of its `forward`
            (None leaves one out), or by name.
        dynamic_shapes: for such a module: as torch.export takes them, by input.
        mask: "none", "causal", "padding" or "full"; default: the architecture's own.
        cross: give the mixer a separate context input.
        positions: give a rotary mixer its tokens' positions as an input.
        static: (batch, tokens) to pin; default: dynamic.
        dtype: "float32", "float16" or "bfloat16".
        opset: version of the standard ops; default: 20, or 22 for bfloat16.
        family: of a checkpoint that is not to be recognised by itself, see `load_checkpoint`.
        degree: of a v1 checkpoint, which its shapes don't tell.
        heads: of a hybrid checkpoint whose shapes don't tell them.
        samples: number of inputs and outputs to save beside the model, for `verify` without the checkpoint.
        progress: called with one line a stage.

    Raises:
        InputError: the checkpoint, an option or the output is not usable.
        ParityError: outputs differ from PyTorch's; no file is written.
    """
    from pom_export.api.source import load_source
    from pom_export.graph.exporter import check_opset, default_opset
    from pom_export.graph.program import GraphOptions

    if dtype not in PRECISIONS:
        raise InputError(f"unknown dtype {dtype!r}", f"Choose one of {', '.join(PRECISIONS)}")
    opset = default_opset(dtype) if opset is None else opset
    check_opset(opset)
    checkpoint = model if isinstance(model, (str, os.PathLike)) else None
    beside = [recording_path(output)] if samples else []
    with staged_output(output, checkpoint, beside=beside, stale=own_side_files(output)) as staged:
        if samples:
            check_recording_place(output)
        source = load_source(
            model,
            GraphOptions(mask, cross, positions, static),
            example_inputs=example_inputs,
            dynamic_shapes=dynamic_shapes,
            hints={"family": family, "degree": degree, "heads": heads},
            progress=progress,
        )
        progress(f"tracing, opset {opset}")
        program = _write(source, staged, dtype, opset)
        exported = read_model(staged)
        _check_dynamic(program, exported)
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


def _write(source: Source, path: Path, dtype: str, opset: int) -> Program:
    """Trace the source and save the graph, which is let go of before anything is compared."""
    from pom_export.graph.exporter import export_graph, save_model

    program = source.program(dtype)
    save_model(export_graph(program, opset, {**source.properties, "dtype": dtype}), path)
    return program


def _check(exported: ExportedModel, source: Source, program: Program, samples: int) -> list[str]:
    """Compare the staged file with PyTorch; write the parity data; return the backends that were compared."""
    metadata = tensor_metadata(exported.inputs)
    names = [spec.name for spec in exported.outputs]
    reference = source.reference()
    if source.own_inputs:
        feed = {name: to_numpy(tensor) for name, tensor in program.inputs.items()}
        example, *others = cases_from_example(feed, exported.inputs)
        cases = [example, *(case for case in others if _runs(reference, case))]
    else:
        cases = list(make_cases(exported.inputs, exported.limits, seed=0))
    cases = cases[: max(samples, _CASES_AT_EXPORT)]

    if samples:
        chosen = cases[:samples]
        outputs = record(torch_runner(reference, names, metadata, "PyTorch"), chosen)
        save_recording(recording_path(exported.path), chosen, outputs, sha256_of(exported.path))
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
                    _parity_hint(worst.difference.max_abs, source.replaced),
                )
    return [f"{candidate.backend} {candidate.path}" for candidate in candidates]


def _parity_hint(difference: float, replaced: list[str]) -> str:
    """Return what may be the matter where outputs differ."""
    if not math.isfinite(difference):
        return (
            "No file was written. One output holds NaN or infinity where the other has none: the official code gives "
            "NaN for a row that is masked out, this toolkit 0"
        )
    if replaced:
        return (
            f"No file was written. In place of {', '.join(replaced[:3])} stands what the official class computes; "
            "a forward that was changed or hooked is lost"
        )
    return "No file was written"


def _check_dynamic(program: Program, exported: ExportedModel) -> None:
    """Raise InputError where the user asked for a dynamic dimension and tracing made it a number."""
    axes = {spec.name: spec.axes for spec in exported.inputs}
    for name, dimensions in (program.dynamic_shapes or {}).items():
        for axis, asked in dimensions.items() if isinstance(dimensions, dict) else enumerate(dimensions or ()):
            if type(asked).__name__ == "Dim" and isinstance(axes.get(name, ())[axis], int):
                raise InputError(
                    f"dimension {axis} of {name} was asked to be dynamic, but the model fixes it to {axes[name][axis]}",
                    "Leave it out of dynamic_shapes, or look for what depends on its value",
                )


def _runs(reference: nn.Module, case: Case) -> bool:
    """Return whether a user's model takes a case of other sizes than the example's; it may know why not."""
    try:
        run_module(reference, case.feed)
    except Exception:  # noqa: BLE001 (whatever the model raises)
        return False
    return True
