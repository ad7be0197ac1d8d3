"""The workload of a server: the next token of every stream, by the number of streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from benchmarks.names import ATTENTION_1K, ATTENTION_8K, GENAI, POOL, SERVING_BACKENDS, SESSIONS
from benchmarks.serving.runners import CacheRunner, GenaiRunner, PoolRunner, SessionsRunner, package_for_genai
from benchmarks.stream.group_query import write_group_query
from benchmarks.stream.inputs import cache_names, drawn_cache, past_bytes
from benchmarks.stream.models import StreamShape, make_model, models_in_words
from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.machine import give_back_freed_memory, resident_bytes
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import BenchResult, Labels, Memory, Point, Rows
from pom_export.bench.runners import Array, Runner, open_session
from pom_export.bench.table import milliseconds
from pom_export.bench.workload import Workload
from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_LENGTH, present_name
from pom_export.runtime.streaming.interface import IDS, read_stateful

DEFAULT_STREAMS: Final = (1, 8, 64, 256)
CONTEXTS: Final = {ATTENTION_1K: 1024, ATTENTION_8K: 8192}
_DESCRIPTIONS: Final = {
    POOL: "a StreamPool with all streams",
    SESSIONS: "a StreamingSession for each stream, one after the other",
    GENAI: "onnxruntime-genai with all streams in one batch",
    ATTENTION_1K: "attention instead of mixers, all streams in one batch after 1,024 tokens each, caches in place",
    ATTENTION_8K: "the same after 8,192 tokens",
}
_MODEL: Final = "model.onnx"
_ATTENTION: Final = "attention.onnx"
_GENAI: Final = "genai"
_RUNS: Final = 3


class ServingWorkload(Workload):
    """A language model with random weights, continued in many streams; N is the number of streams."""

    known: ClassVar[Sequence[str]] = SERVING_BACKENDS
    alike: ClassVar[Sequence[Sequence[str]]] = ((POOL, SESSIONS, GENAI),)
    turn_s: ClassVar[float] = 0.3
    labels: ClassVar[Labels] = Labels(
        unit="milliseconds between two tokens of a stream, medians",
        tokens="streams",
        memory="MiB by which a process grows for each stream, and MiB that a stream keeps",
        ratios=((SESSIONS, POOL), (GENAI, POOL), (ATTENTION_1K, POOL), (ATTENTION_8K, POOL)),
        held=(POOL, ATTENTION_1K, ATTENTION_8K),
    )

    def __init__(self, shape: StreamShape) -> None:
        super().__init__()
        self.shape = shape

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write the models.

        Raises:
            InputError: a number of streams is not positive.
        """
        self.folder = folder
        self.sizes = [Size(1, streams) for streams in sorted(options.tokens or DEFAULT_STREAMS)]
        if self.sizes[0].tokens < 1:
            raise InputError(f"{self.sizes[0].tokens} streams cannot be timed", "Give at least 1")
        model = make_model(self.shape, options.seed)
        peer = make_model(self.shape, options.seed, attention=True)
        self.summary = f"many streams of {models_in_words(self.shape, model, peer)}"
        progress("exporting the model with its state")
        export(model, folder / _MODEL, stateful=True)
        write_group_query(peer, max(CONTEXTS.values()) + 1, folder / _ATTENTION)
        for name in SERVING_BACKENDS:
            self.offer(name, options, partial(self._make, name, options.threads))

    def _make(self, name: str, threads: int) -> None:
        """Write what a backend needs besides the models."""
        if name == GENAI:
            package_for_genai(self.folder / _MODEL, self.folder / _GENAI, threads)

    def load(self, backend: str, size: Size, threads: int) -> Runner:  # noqa: D102
        if backend in CONTEXTS:
            session = open_session(self.folder / _ATTENTION, threads)
            return CacheRunner(session, {present_name(name): name for name in cache_names(self.shape.layers)})
        if backend == POOL:
            return PoolRunner(self.folder / _MODEL, size.tokens, threads)
        if backend == GENAI:
            return GenaiRunner(self.folder / _GENAI)
        return SessionsRunner(self.folder / _MODEL, threads)

    def inputs(self, backend: str, size: Size, seed: int) -> dict[str, Array]:
        """Return each stream's first token and, for attention, its random keys and values, the same for all streams."""
        ids = np.random.default_rng(seed).integers(0, 256, (size.tokens, 1))
        if backend not in CONTEXTS:
            return {IDS: ids}
        context = CONTEXTS[backend]
        caches = drawn_cache(self.shape, context, 1, seed)
        past = {name: np.repeat(cache, size.tokens, axis=0) for name, cache in caches.items()}
        return {IDS: ids, PAST_LENGTH: np.full(size.tokens, context), **past}

    def bytes_needed(self, backend: str, size: Size) -> int:  # noqa: D102
        return size.tokens * self._kept_bytes(backend)

    def _kept_bytes(self, backend: str) -> int:
        """Return the size of what a stream keeps between two tokens."""
        if backend in CONTEXTS:
            return past_bytes(drawn_cache(self.shape, CONTEXTS[backend], 0, 0), CONTEXTS[backend])
        return sum(array.nbytes for array in read_stateful(self.folder / _MODEL).empty(1).values())

    def measure_memory(self, backend: str, size: Size, options: BenchOptions) -> Memory:
        """Return how much a process grows for each stream, and what a stream keeps."""
        runner = self.load(backend, size, options.threads)
        # What the first run loads does not count.
        runner.bind(self.inputs(backend, Size(1, 1), options.seed)).run()
        give_back_freed_memory()
        before = resident_bytes()
        bound = runner.bind(self.inputs(backend, size, options.seed))
        for _ in range(_RUNS):
            bound.run()
        give_back_freed_memory()
        return Memory(max(0, resident_bytes() - before) // size.tokens, self._kept_bytes(backend))

    def complete(self, result: BenchResult) -> None:  # noqa: D102
        for point in result.points:
            point.facts["tokens_per_second"] = {
                name: 1e3 * point.tokens / timed.median_ms for name, timed in point.timings.items()
            }
        result.tables["tokens a second, of all streams together"] = _rows(
            result, lambda point, name: f"{point.facts['tokens_per_second'][name]:.0f}"
        )
        result.tables["milliseconds between two tokens of a stream, which 99 % do not exceed"] = _rows(
            result, lambda point, name: milliseconds(point.timings[name].p99_ms)
        )
        result.notes += [f"{name}: {_DESCRIPTIONS[name]}" for name in result.backends]


def _rows(result: BenchResult, cell: Callable[[Point, str], str]) -> Rows:
    """Return a header and one row per number of streams."""
    rows = [[result.labels.tokens, *result.backends]]
    for point in result.points:
        cells = [cell(point, name) if name in point.timings else "-" for name in result.backends]
        rows.append([str(point.tokens), *cells])
    return rows
