"""Workloads: what a benchmark times, on which backends and at which sizes."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import onnx

from pom_export.bench.machine import give_back_freed_memory, peak_bytes, reset_peak, resident_bytes
from pom_export.bench.options import BACKENDS, FUNCTION, KERNEL, TENSORRT, BenchOptions, Size
from pom_export.bench.results import BenchResult, Labels, Memory
from pom_export.bench.runners import Array, EngineRunner, Runner, SessionRunner, open_session
from pom_export.engine.backend import gpu_present
from pom_export.errors import InputError, PomExportError
from pom_export.graph.exported_model import ExportedModel, is_past, read_model
from pom_export.graph.loading import load_graph
from pom_export.graph.quantized.operators import activation_bits
from pom_export.parity.inputs import ComparisonPlan, draw_input
from pom_export.parity.tolerances import ROUNDED
from pom_export.runtime.library import custom_ops_library

if TYPE_CHECKING:
    from pom_export.api.progress import Progress

_ENGINE_FILE: Final = "model.engine"
_KEPT_SHARE: Final = 0.9
_FEW_TOKENS: Final = 8
# The number of tensors as large as the largest that exist at the same time: an op's input and output, and reuse.
_LARGE_TENSORS: Final = 4


class Workload(ABC):
    """What to time: ONNX files in ONNX Runtime and TensorRT, unless a subclass overrides how they are loaded.

    One process prepares it. It is then pickled for the workers, which load its backends and bind them at its sizes.

    Attributes:
        known: names of all backends that it can have, in the order of the tables' columns.
        alike: groups of backends that compute the same; the others are compared with the first one that runs.
        together: whether all sizes are timed in one process, with an untimed run before each timed one; for runs so
            short that the caches' contents matter. Otherwise, each size has its own process.
        turn_s: seconds for which a backend runs in each round, again and again, after an untimed run; 0: once.
        environment: environment variables of the workers.
        labels: texts of its tables.
        summary: one line that says what is timed.
        precision: the type of weights and activations.
        compared_as: the entry of BENCHMARK in the table of tolerances that backends are compared by.
        backends: the backends that run.
        not_run: the reason, for each requested backend that does not run.
        sizes: the sizes to time.
        folder: where the files that backends load are.
        model: the exported file.
    """

    known: ClassVar[Sequence[str]] = BACKENDS
    alike: ClassVar[Sequence[Sequence[str]]] = (BACKENDS,)
    together: ClassVar[bool] = False
    turn_s: ClassVar[float] = 0.0
    environment: ClassVar[Mapping[str, str]] = {}
    labels: ClassVar[Labels] = Labels()
    folder: Path
    model: ExportedModel

    def __init__(self) -> None:
        self.summary = ""
        self.precision = self.compared_as = "float32"
        self.backends: list[str] = []
        self.not_run: dict[str, str] = {}
        self.sizes: list[Size] = []

    @abstractmethod
    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write the files that backends load into `folder`, and determine the backends and sizes.

        Raises:
            InputError: an option does not fit, or a file cannot be read.
        """

    def offer(self, name: str, options: BenchOptions, make: Callable[[], object]) -> None:
        """Add a backend if it was requested and its files can be made."""
        if options.backends is not None and name not in options.backends:
            return
        try:
            make()
        except PomExportError as error:
            self.not_run[name] = error.what
        else:
            self.backends.append(name)
            self.backends.sort(key=list(self.known).index)

    def take(self, path: Path, folder: Path) -> ExportedModel:
        """Make an exported file the one to time.

        Raises:
            InputError: it cannot be read.
        """
        self.folder, self.model = folder, read_model(path)
        self.precision = self.compared_as = self.model.precision
        if activation_bits(load_graph(path).graph.all_nodes()) is not None:
            self.compared_as = ROUNDED
        return self.model

    def offer_exports(self, options: BenchOptions, progress: Progress) -> None:
        """Add the backends of an exported file, for the sizes determined so far."""
        self.offer(FUNCTION, options, lambda: None)
        self.offer(KERNEL, options, self._find_kernels)
        self.offer(TENSORRT, options, lambda: self._build_engine(progress))

    def _find_kernels(self) -> None:
        if not self.model.aggregations:
            raise InputError("the file is inlined: it holds no node that our kernels could compute")
        custom_ops_library()

    def _build_engine(self, progress: Progress) -> None:
        if not gpu_present():
            raise InputError("it needs a GPU, and there is none here")
        from pom_export.engine import build_engine

        most = Size(max(size.batch for size in self.sizes), max(size.tokens for size in self.sizes))
        sizes = sizes_at(self.model, most)
        shapes = {spec.name: _shape(spec.axes, sizes) for spec in self.model.inputs}
        engine = self.folder / _ENGINE_FILE
        build_engine(self.model.path, engine, opt_shapes=shapes, max_shapes=shapes, progress=progress)

    def model_of(self, backend: str, size: Size) -> ExportedModel:  # noqa: ARG002
        """Return the file that a backend loads or, if it loads none, the one with the same inputs and weights."""
        return self.model

    def load(self, backend: str, size: Size, threads: int) -> Runner:
        """Load a backend in a worker; if all sizes are timed together, only for the first."""
        if backend == TENSORRT:
            return EngineRunner(self.folder / _ENGINE_FILE)
        return SessionRunner(open_session(self.model_of(backend, size).path, threads, kernels=backend == KERNEL))

    def inputs(self, backend: str, size: Size, seed: int) -> dict[str, Array]:
        """Return a backend's inputs at a size, by name; the same seed gives the same values. A stream has no past."""
        model, random_state = self.model_of(backend, size), np.random.default_rng(seed)
        plan = ComparisonPlan("timed", size.batch, size.tokens, size.tokens, kept=_KEPT_SHARE)
        sizes = sizes_at(model, size)
        feed = {}
        for spec in model.inputs:
            shape = _shape(spec.axes, sizes)
            past = is_past(spec.name)
            feed[spec.name] = (
                np.zeros(shape, spec.dtype) if past else draw_input(spec, shape, plan, model.limits, random_state)
            )
        return feed

    def bytes_needed(self, backend: str, size: Size) -> int:
        """Return the approximate peak memory of a run, without weights."""
        model = self.model_of(backend, size)
        sizes = sizes_at(model, size)
        known = [
            (axes, width)
            for axes, width in _activations(model.path)
            if all(isinstance(axis, int) or axis in sizes for axis in axes)
        ]
        return _LARGE_TENSORS * max(width * math.prod(_shape(axes, sizes)) for axes, width in known)

    def excluded(self, backend: str, size: Size) -> str | None:  # noqa: ARG002
        """Return why a backend is not timed at a size even if the memory suffices, or None if it is."""
        return None

    def compared(self, outputs: Sequence[Array]) -> Sequence[Array]:
        """Return the outputs on which the backends of a group must agree."""
        return outputs

    def warm_up(self, runner: Runner, backend: str, size: Size, seed: int) -> None:
        """Run on a few tokens, so that what the first run loads does not count as memory of a run.

        If sizes are fixed, nothing is run, since the run itself would take the memory to be measured.
        """
        few = size._replace(tokens=min(_FEW_TOKENS, size.tokens))
        model = self.model_of(backend, size)
        first, second = (sizes_at(model, each) for each in (few, size))
        if any(_shape(spec.axes, first) != _shape(spec.axes, second) for spec in model.inputs):
            runner.bind(self.inputs(backend, few, seed))

    def measure_memory(self, backend: str, size: Size, options: BenchOptions) -> Memory:
        """Return how much resident memory grows during two runs, from the state with the model loaded.

        It is called in a worker that does nothing else.
        """
        runner = self.load(backend, size, options.threads)
        self.warm_up(runner, backend, size, options.seed)
        feed = self.inputs(backend, size, options.seed)
        give_back_freed_memory()
        reset = reset_peak()
        before = resident_bytes()
        bound = runner.bind(feed)
        bound.run()
        grown = max(0, peak_bytes() - before)
        held = sum(array.nbytes for array in (*feed.values(), *bound.outputs))
        return Memory(grown if reset else None, held + _weight_bytes(self.model_of(backend, size).path))

    def complete(self, result: BenchResult) -> None:  # noqa: B027 (most have nothing to add)
        """Add to a result what only this workload knows."""


def sizes_at(model: ExportedModel, size: Size) -> dict[str, int]:
    """Return the sizes of a file's dynamic dimensions, of those that are known.

    A file with a state is timed as in the first call of a stream: there is no past, and a user's own context is as long
    as the query.
    """
    sizes = size.dimensions
    if model.stateful:
        for spec in model.inputs:
            for axis in spec.axes:
                if isinstance(axis, str):
                    sizes.setdefault(axis, 0 if is_past(spec.name) else size.tokens)
    return sizes


def _shape(axes: Sequence[str | int], sizes: Mapping[str, int]) -> list[int]:
    return [sizes[axis] if isinstance(axis, str) else axis for axis in axes]


@functools.cache
def _activations(path: Path) -> list[tuple[list[str | int], int]]:
    """Return the axes and bytes per element of every activation."""
    graph = onnx.load(path, load_external_data=False).graph
    found: list[tuple[list[str | int], int]] = []
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        axes = [dim.dim_param or int(dim.dim_value) for dim in kind.shape.dim]
        if kind.elem_type:
            found.append((axes, _width(kind.elem_type)))
    return found


def _weight_bytes(path: Path) -> int:
    weights = onnx.load(path, load_external_data=False).graph.initializer
    return sum(_width(tensor.data_type) * math.prod(tensor.dims) for tensor in weights)


def _width(kind: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
