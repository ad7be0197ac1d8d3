"""A workload for an exported file: with our kernels, without them, and as a TensorRT engine."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import onnx

from pom_export.api.progress import Progress
from pom_export.bench.dimensions import DIMENSIONS, resolve_axes, sizes_of
from pom_export.bench.machine import give_back_freed_memory, peak_bytes, reset_peak, resident_bytes
from pom_export.bench.options import BenchOptions
from pom_export.bench.results import Labels, Memory
from pom_export.bench.runners import Array, EngineRunner, Runner, SessionRunner, draw_inputs, open_session, tensor_bytes
from pom_export.bench.workload import FUNCTION, KERNEL, TENSORRT, Conditions, Size, Workload, refuse
from pom_export.engine.backend import gpu_present
from pom_export.errors import InputError
from pom_export.files import as_path
from pom_export.graph.exported_model import BATCH, TOKENS, ExportedModel, read_model
from pom_export.runtime.library import custom_ops_library

DEFAULT_TOKENS: Final = (256, 1024, 4096)
DEFAULT_BATCH: Final = (1,)
_RANK_OF_TOKENS: Final = 3
_ENGINE_FILE: Final = "model.engine"
_ONNX_SUFFIX: Final = ".onnx"
_FEW_TOKENS: Final = 8
# Tensors as large as the largest one that live at the same time: an op's input and output, and room to reuse.
_LARGE_TENSORS: Final = 4
# Axes, and the bytes of an element.
_Activation = tuple[tuple[str | int, ...], int]
LABELS: Final = Labels(
    base=KERNEL,
    unit="milliseconds, medians",
    tokens="tokens",
    memory="MiB by which the peak of resident memory grows over two runs, and MiB of weights, inputs and outputs",
    ratios=((FUNCTION, KERNEL),),
    held=(KERNEL,),
)


class OnnxWorkload(Workload):
    """An exported file, and whatever ONNX files stand beside it."""

    known: ClassVar[Mapping[str, str]] = {
        FUNCTION: "the file in ONNX Runtime, without our library",
        KERNEL: "the file in ONNX Runtime, with our library",
        TENSORRT: "the file as a TensorRT engine, copies to the GPU and back included",
    }
    alike: ClassVar[Sequence[Sequence[str]]] = ((FUNCTION, KERNEL, TENSORRT),)
    labels: ClassVar[Labels] = LABELS
    model: ExportedModel
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self._activations: dict[Path, list[_Activation]] = {}

    def take(self, path: Path, folder: Path) -> ExportedModel:
        """Take an exported file as the one that is timed.

        Raises:
            InputError: it cannot be read.
        """
        self.folder, self.model = folder, read_model(path)
        self.precision = self.model.precision
        self._activations[self.model.path] = _activations(path)
        return self.model

    def offer_exports(self, options: BenchOptions, progress: Progress) -> None:
        """Have the backends run that the exported file itself is for."""
        self.offer(FUNCTION, options, lambda: None)
        self.offer(KERNEL, options, custom_ops_library)
        build = (
            (lambda: self._build_engine(progress))
            if gpu_present()
            else refuse("it needs a GPU, and there is none here")
        )
        self.offer(TENSORRT, options, build)

    def _build_engine(self, progress: Progress) -> None:
        from pom_export.engine import build_engine

        most = sizes_of(max(size.batch for size in self.sizes), max(size.tokens for size in self.sizes))
        shapes = {spec.name: resolve_axes(spec.axes, most) for spec in self.model.inputs}
        engine = self.folder / _ENGINE_FILE
        build_engine(self.model.path, engine, opt_shapes=shapes, max_shapes=shapes, progress=progress)

    def export_at(self, size: Size) -> ExportedModel:  # noqa: ARG002
        """Return our export for a size."""
        return self.model

    def file_of(self, backend: str, size: Size) -> Path:  # noqa: ARG002
        """Return the ONNX file of a backend, or our export for a backend that has none."""
        return self.export_at(size).path

    def interface(self, backend: str, size: Size) -> ExportedModel:
        """Return what tells a backend's inputs: our export, which knows their limits, for all that compute the same."""
        alike = any(backend in group for group in self.alike)
        return self.export_at(size) if alike else read_model(self.file_of(backend, size))

    def load(self, backend: str, size: Size, threads: int) -> Runner:  # noqa: D102
        if backend == TENSORRT:
            return EngineRunner(self.folder / _ENGINE_FILE)
        return SessionRunner(open_session(self.file_of(backend, size), threads, kernels=backend == KERNEL))

    def inputs(self, backend: str, size: Size, seed: int) -> dict[str, Array]:  # noqa: D102
        return draw_inputs(self.interface(backend, size), sizes_of(*size), seed)

    def bytes_needed(self, backend: str, size: Size) -> int:  # noqa: ARG002, D102
        sizes = sizes_of(*size)
        activations = self._activations[self.export_at(size).path]
        largest = max(item_bytes * math.prod(resolve_axes(axes, sizes)) for axes, item_bytes in activations)
        return _LARGE_TENSORS * largest

    def warm_up(self, runner: Runner, backend: str, size: Size, seed: int) -> None:
        """Run on few tokens, so that what loads with the first run is not taken for a run's own memory.

        Where sizes are fixed nothing is run: that would itself take the memory that is measured.
        """
        interface, few = self.interface(backend, size), min(_FEW_TOKENS, size.tokens)
        small, feed = (draw_inputs(interface, sizes_of(size.batch, tokens), seed) for tokens in (few, size.tokens))
        if any(small[name].size < feed[name].size for name in feed):
            runner.bind(small)

    def measure_memory(self, backend: str, size: Size, conditions: Conditions) -> Memory:
        """Return how far resident memory grows over what it was with the model loaded, while a backend runs twice."""
        runner = self.load(backend, size, conditions.threads)
        self.warm_up(runner, backend, size, conditions.seed)
        feed = self.inputs(backend, size, conditions.seed)
        give_back_freed_memory()
        reset = reset_peak()
        before = resident_bytes()
        bound = runner.bind(feed)
        bound.run()
        grown = max(0, peak_bytes() - before)
        held = tensor_bytes(self.file_of(backend, size), feed, bound.outputs)
        return Memory(grown if reset else None, held)


class FileWorkload(OnnxWorkload):
    """A user's exported file.

    Args:
        path: of the ONNX file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self.path = as_path(path, "model")

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:  # noqa: D102
        if self.path.exists() and self.path.suffix != _ONNX_SUFFIX:
            raise InputError(f"{self.path} is no .onnx file", f"Export it: pom-export export {self.path} -o model.onnx")
        self.take(self.path, folder)
        self.sizes = open_sizes(self.model, options)
        if not self.model.aggregations:
            raise InputError(f"model {self.path} holds no PoM aggregation", "Export it with `pom-export export`")
        if self.precision == "bfloat16":
            what = "ONNX Runtime's CPU provider has no bfloat16 matrix product"
            raise InputError(what, "Export in float32 or float16")
        inputs = ", ".join(map(str, self.model.inputs))
        count = len(self.model.aggregations)
        self.summary = f"{self.path.name}: {inputs}, {count} aggregation{'s' if count != 1 else ''}"
        self.offer_exports(options, progress)


def _activations(path: Path) -> list[_Activation]:
    """Return every activation whose size a benchmark knows."""
    graph = onnx.load(path, load_external_data=False).graph
    found: list[_Activation] = []
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        axes = tuple(dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim)
        if kind.elem_type and all(isinstance(axis, int) or axis in DIMENSIONS for axis in axes):
            found.append((axes, int(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize)))
    return found


def open_sizes(model: ExportedModel, options: BenchOptions) -> list[Size]:
    """Return the sizes to run at: what was asked for, as far as the model leaves it open."""
    axes = [axis for spec in model.inputs for axis in spec.axes]
    if unknown := [axis for axis in axes if isinstance(axis, str) and axis not in DIMENSIONS]:
        raise InputError(
            f"the model has a dimension {unknown[0]!r}, which a benchmark has no size for", "Export it with that fixed"
        )
    first = model.inputs[0].axes
    batch = _sizes("batch", options.batch, DEFAULT_BATCH, first[0] if first else BATCH)
    tokens = _sizes("tokens", options.tokens, DEFAULT_TOKENS, _tokens_axis(model))
    most = model.limits.tokens
    if most is not None and options.tokens is None:
        tokens = [size for size in tokens if size <= most] or [most]
    if most is not None and max(tokens) > most:
        raise InputError(f"{max(tokens)} tokens are more than the model has positions for, {most}", "Choose fewer")
    return [Size(b, n) for b in batch for n in tokens]


def _tokens_axis(model: ExportedModel) -> str | int:
    """Return the tokens of a row: a dimension's name, a fixed size, or the patches of an image."""
    first = model.inputs[0].axes
    if len(first) <= _RANK_OF_TOKENS:
        return first[1] if len(first) > 1 else TOKENS
    config = model.spec.get("config", {})
    size, patch = config.get("input_size"), config.get("patch_size")
    if type(size) is not int or type(patch) is not int or not 0 < patch <= size:
        return 1  # the file does not say what a token of it is
    return (size // patch) ** 2


def _sizes(name: str, asked: Sequence[int] | None, default: Sequence[int], axis: str | int) -> list[int]:
    if isinstance(axis, str):
        return list(default if asked is None else asked)
    if asked is not None and list(asked) != [axis]:
        raise InputError(f"the model is fixed to {name} {axis}", f"Leave `{name}` out, or export without `static`")
    return [axis]
