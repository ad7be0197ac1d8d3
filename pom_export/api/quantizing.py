"""Quantize: make a file's weights smaller, as far as its quality allows, and measure what that cost."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from pom_export.api.arguments import check_count, check_names
from pom_export.api.progress import Progress, silent
from pom_export.api.side_files import check_recording_place, own_side_files
from pom_export.errors import InputError, only_ours
from pom_export.files import scratch_folder, staged_output
from pom_export.graph.claims import WEIGHT_TYPES
from pom_export.graph.exported_model import PRECISIONS, ExportedModel, read_model
from pom_export.graph.loading import load_graph
from pom_export.parity.inputs import Inputs
from pom_export.parity.recording import recording_of, recording_path
from pom_export.quantization.choosing import Budget
from pom_export.quantization.names import ACTIVATION_TYPES, ONNXRUNTIME, PURPOSES, RUNTIMES, TENSORRT
from pom_export.quantization.report import QuantizeResult
from pom_export.stages import logged
from pom_export.suggestions import did_you_mean
from pom_export.values import is_number

_LOG = logging.getLogger(__name__)
_MAX_LOSS: Final = 0.01
"""What a model's own measure may lose by default."""


@only_ours
def quantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    weights: str | None = None,
    activations: str | None = None,
    runtime: str | None = None,
    calibrate: Inputs | None = None,
    tokenizer: str = "auto",
    max_loss: float | None = None,
    max_error: float | None = None,
    keep_float32: Sequence[str] = (),
    target: str = "both",
    seed: int = 0,
    progress: Progress = silent,
) -> QuantizeResult:
    """Write a copy of an exported file whose matrix products have weights of 8 or 4 bits, for ONNX Runtime on a CPU.

    Coefficients, biases, norms, the aggregation and states stay in float32, and so do products that cost more than the
    budget allows. The file keeps the custom op, its functions, the metadata and the interface. Before it appears, it is
    compared with the original with the same rounded weights, and its quality is measured on inputs that were held out.

    Args:
        model: a float32 ONNX file that an export wrote, with a state or without; for TensorRT also one in float16,
            whose other weights and activations, such as those of the plugin, stay so.
        output: path of the new file.
        weights: "int8", "int4", or "fp8" (E4M3, for TensorRT), the type of most weights; where it costs too much,
            products get the next wider one. Default: that of the activations, or else "int8".
        activations: for TensorRT, "int8" or "fp8": activations of the products are rounded too, with scales that are
            chosen on the calibration inputs and fixed in the file. None: they are not, or ONNX Runtime's kernels do it.
        runtime: "onnxruntime", on a CPU; or "tensorrt", for which `build_engine` makes an engine of the file. Default:
            "tensorrt" if activations or fp8 are asked for.
        calibrate: what to calibrate on and to measure with: a file of text, for a language model; or a .npz or arrays
            by name with the model's inputs, batch first, and optionally "labels", (B,) int, the right class of each
            row. A quarter is held out. None: text that the model writes itself if it is a stateful language model, else
            random inputs, which say nothing of its purpose.
        tokenizer: for text: "auto", "bytes", "gpt2", or the path of a tokenizer.json.
        max_loss: the most that the model's own measure (bits a byte, accuracy) may be worse, as a share of it, which
            takes text or labels; default: 0.01, if there is such a measure and no `max_error`.
        max_error: the largest error of an output, relative to its largest magnitude.
        keep_float32: names of modules, or patterns, whose products stay in float32.
        target: what the file is made for: "decode" (a token a call), "prefill" (prompts), or "both". Of the forms of
            products that are within the budget, the file has the most accurate one, unless another is at least a tenth
            faster here: the choice may differ between machines, and between runs where times are close to that.
        seed: of random inputs.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Returns:
        What was done, what it cost, and what it gained.

    Raises:
        InputError: the file or an argument is unusable: it is quantized already, or not float32, or has NaN weights.
        ParityError: no file is within the budget, or the new one does not compute what it should; nothing is written.
        MissingDependencyError: ONNX Runtime is not installed.
    """
    progress = logged(progress, _LOG)
    budget = _budget(max_loss, max_error)
    runtime = runtime or (TENSORRT if activations is not None or weights == "fp8" else ONNXRUNTIME)
    weights = weights or activations or WEIGHT_TYPES[0]
    _check(weights, activations, runtime, target, keep_float32)
    check_count("seed", seed, "The same seed draws the same inputs")
    original = read_model(model)
    _check_model(original, runtime)
    recording = recording_of(original)
    sources = [original.path, *original.weights, recording_path(original.path)]
    sources += [] if calibrate is None or isinstance(calibrate, Mapping) else [Path(calibrate)]
    beside = [recording_path(output)] if recording else []
    with ExitStack() as stack:
        staged = stack.enter_context(
            staged_output(output, *sources, beside=beside, stale=lambda: own_side_files(output))
        )
        if recording:
            check_recording_place(output)
        folder = stack.enter_context(scratch_folder())
        from pom_export.quantization.data import data_for
        from pom_export.quantization.job import Job
        from pom_export.quantization.recipes import recipes_for

        data = data_for(original, calibrate, tokenizer, seed, progress)
        progress(f"measuring on {data.source}")
        recipes = recipes_for(weights, activations, runtime, target, stateful=bool(original.stateful))
        parts = (original, data, budget, weights, recipes, target, keep_float32, folder, staged.name, progress)
        with Job(*parts) as job:
            made = job.run()
            for file in made.file.parent.iterdir():  # with external weights
                shutil.move(file, staged.parent / file.name)
            result = job.result(made, staged, os.fspath(output))
            if recording:
                job.save_recording(recording, made, staged)
        return result


def _budget(max_loss: float | None, max_error: float | None) -> Budget:
    for name, value in (("max_loss", max_loss), ("max_error", max_error)):
        if value is not None and not (is_number(value) and math.isfinite(value) and value > 0):
            raise InputError(f"`{name}` must be a share above 0, got {value!r}", f"Example: `{name}=0.01` for 1 %")
    if max_loss is None and max_error is None:
        return Budget(_MAX_LOSS, is_default=True)
    return Budget(max_loss, max_error)


def _check(weights: str, activations: str | None, runtime: str, target: str, keep_float32: Sequence[str]) -> None:
    words = [("weights", weights, WEIGHT_TYPES), ("runtime", runtime, RUNTIMES), ("target", target, PURPOSES)]
    words += [] if activations is None else [("activations", activations, ACTIVATION_TYPES)]
    for name, value, known in words:
        if value not in known:
            hint = did_you_mean(str(value), known) or f"Choose one of {', '.join(known)}"
            raise InputError(f"`{name}` {value!r} is not known", hint)
    _check_types(weights, activations, runtime)
    check_names(keep_float32)


def _check_types(weights: str, activations: str | None, runtime: str) -> None:
    """Refuse types that no kernel of a runtime multiplies."""
    if runtime == ONNXRUNTIME and (activations is not None or weights == "fp8"):
        raise InputError(
            "fixed scales of activations and fp8 are for TensorRT: ONNX Runtime's kernels choose scales in each call",
            "Leave out `activations`, or give `runtime='tensorrt'`",
        )
    if activations is not None and activations != weights:
        raise InputError(
            f"`activations={activations!r}` needs weights of the same type, not {weights}", "Leave out `weights`"
        )


def _check_model(model: ExportedModel, runtime: str) -> None:
    """Refuse a file that cannot be quantized, before anything slow."""
    from pom_export.graph.quantized.operators import is_quantized

    if is_quantized(load_graph(model.path)):
        raise InputError(f"{model.path} is quantized already", "Give the float32 file that it was made from")
    known = PRECISIONS[:2] if runtime == TENSORRT else PRECISIONS[:1]
    if model.precision not in known:
        raise InputError(
            f"{model.path} is in {model.precision}, and files for {runtime} are made of those in {' or '.join(known)}",
            f"Export it in {known[0]}, and quantize that file",
        )
