"""The workload of a stream: the next token after contexts of every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import ClassVar, Final

import numpy as np

from benchmarks.growth import growth
from benchmarks.names import ATTENTION, ATTENTION_SHARED, FUNCTION, KERNEL, STREAM_BACKENDS
from benchmarks.stream.group_query import write_group_query
from benchmarks.stream.inputs import cache_names, drawn_cache, drawn_tokens, past_bytes, state_after
from benchmarks.stream.models import StreamShape, make_model, models_in_words, write_attention
from benchmarks.stream.prefill import Prefill, prefill
from pom_export.api.exporting import export
from pom_export.api.progress import Progress
from pom_export.bench.machine import give_back_freed_memory, resident_bytes
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import BenchResult, Labels, Memory, Rows
from pom_export.bench.runners import Array, Runner, SessionRunner, open_session
from pom_export.bench.table import mebibytes
from pom_export.bench.worker import call_in_worker
from pom_export.bench.workload import Workload
from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_LENGTH, present_name
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.streaming.interface import IDS

DEFAULT_CONTEXTS: Final = (1, 128, 1024, 8192, 32768, 131072, 1048576)
# Attention is not timed beyond it, since its steps would take most of the benchmark's time.
LONGEST_ATTENTION: Final = 32768
FILES: Final = {
    FUNCTION: "model.onnx",
    KERNEL: "model.onnx",
    ATTENTION: "attention.onnx",
    ATTENTION_SHARED: "attention-shared.onnx",
}
_DESCRIPTIONS: Final = {
    FUNCTION: "our stateful export in ONNX Runtime, without our library",
    KERNEL: "our stateful export in ONNX Runtime, with our library",
    ATTENTION: "attention instead of mixers; each step copies its cache into a longer one, as exporters write it",
    ATTENTION_SHARED: "the same with ONNX Runtime's GroupQueryAttention, whose cache is written in place",
}
_ITEM_BYTES: Final = 4
# The number of copies of a cache during a step.
_CACHES: Final = {ATTENTION: 2, ATTENTION_SHARED: 1}
_RUNS: Final = 3


class StreamWorkload(Workload):
    """A language model with random weights, token by token; N is the number of tokens before the timed one."""

    known: ClassVar[Sequence[str]] = STREAM_BACKENDS
    alike: ClassVar[Sequence[Sequence[str]]] = ((FUNCTION, KERNEL), (ATTENTION, ATTENTION_SHARED))
    together: ClassVar[bool] = True
    labels: ClassVar[Labels] = Labels(
        unit="milliseconds per token, medians",
        tokens="tokens before",
        memory="MiB by which a process that streams grows beyond one that has no context, and MiB that a sequence "
        "keeps",
        ratios=((ATTENTION, KERNEL), (ATTENTION_SHARED, KERNEL)),
        held=tuple(FILES),
    )

    def __init__(self, shape: StreamShape) -> None:
        super().__init__()
        self.shape = shape
        self.prefills: dict[int, Prefill] = {}

    def prepare(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write the models that stream, and process the contexts.

        Raises:
            InputError: an option does not fit a stream, or no mixer can run.
            WorkerError: the contexts could not be processed.
        """
        self.write_models(options, folder, progress)
        contexts = [size.tokens for size in self.sizes]
        name = KERNEL if KERNEL in self.backends else FUNCTION
        progress(f"processing {max(contexts)} tokens with {name}")
        self.prefills = call_in_worker(
            prefill, self.file_of(name), contexts, options, name == KERNEL, folder=folder, threads=options.threads
        )

    def write_models(self, options: BenchOptions, folder: Path, progress: Progress) -> None:
        """Write the models that stream, and determine backends and contexts."""
        if options.batch is not None and list(options.batch) != [1]:
            raise InputError("a stream is timed with batch 1", "Leave `batch` out")
        if options.backends is not None and not {FUNCTION, KERNEL} & set(options.backends):
            raise InputError("no mixer can run: none was requested", f"Name {KERNEL} or {FUNCTION}")
        self.folder = folder
        self.sizes = [Size(1, tokens) for tokens in sorted(options.tokens or DEFAULT_CONTEXTS)]
        model = make_model(self.shape, options.seed)
        peer = make_model(self.shape, options.seed, attention=True)
        self.summary = f"one token per step of {models_in_words(self.shape, model, peer)}"
        progress("exporting the model with its state")
        export(model, self.file_of(KERNEL), stateful=True)
        self.offer(FUNCTION, options, lambda: None)
        self.offer(KERNEL, options, custom_ops_library)
        if not self.backends:
            raise InputError(f"no mixer can run: {self.not_run[KERNEL]}", f"Name {FUNCTION}")
        longest = max((size.tokens for size in self.sizes if size.tokens <= LONGEST_ATTENTION), default=0)
        self.offer(ATTENTION, options, lambda: write_attention(peer, self.file_of(ATTENTION)))
        # One more position, for the timed token.
        shared = self.file_of(ATTENTION_SHARED)
        self.offer(ATTENTION_SHARED, options, lambda: write_group_query(peer, longest + 1, shared))

    def file_of(self, backend: str) -> Path:
        """Return the file that a backend loads."""
        return self.folder / FILES[backend]

    def load(self, backend: str, size: Size, threads: int) -> Runner:  # noqa: ARG002, D102
        session = open_session(self.file_of(backend), threads, kernels=backend == KERNEL)
        names = cache_names(self.shape.layers) if backend == ATTENTION_SHARED else ()
        return SessionRunner(session, {present_name(name): name for name in names})

    def inputs(self, backend: str, size: Size, seed: int) -> dict[str, Array]:
        """Return the token, and a mixer's state after that many real tokens, or random keys and values."""
        context = size.tokens
        if backend in _CACHES:
            past = drawn_cache(self.shape, context, int(backend == ATTENTION_SHARED), seed)
        else:
            past = state_after(self.file_of(backend), context)
        ids = drawn_tokens(seed, context + 1)[-1:]
        return {IDS: ids[None].astype(np.int64), PAST_LENGTH: np.array([context], np.int64), **past}

    def bytes_needed(self, backend: str, size: Size) -> int:  # noqa: D102
        return _CACHES.get(backend, 0) * self._cache_bytes(size)

    def excluded(self, backend: str, size: Size) -> str | None:  # noqa: D102
        if backend not in _CACHES or size.tokens <= LONGEST_ATTENTION:
            return None
        return f"its cache is {self._cache_bytes(size) / 2**30:.1f} GiB; it is timed up to {LONGEST_ATTENTION}"

    def _cache_bytes(self, size: Size) -> int:
        return 2 * self.shape.layers * self.shape.dim * _ITEM_BYTES * size.tokens

    def compared(self, outputs: Sequence[Array]) -> Sequence[Array]:
        """Return the logits, since caches can have spare tokens."""
        return outputs[:1]

    def measure_memory(self, backend: str, size: Size, options: BenchOptions) -> Memory:
        """Return how much more memory a process holds that streams from a context than one that starts without."""
        runner = self.load(backend, size, options.threads)
        # What the first run loads does not count.
        runner.bind(self.inputs(backend, Size(1, 0), options.seed))
        give_back_freed_memory()
        before = resident_bytes()
        feed = self.inputs(backend, size, options.seed)
        bound = runner.bind(feed)
        for _ in range(_RUNS):
            bound.run()
        give_back_freed_memory()
        return Memory(max(0, resident_bytes() - before), past_bytes(feed, size.tokens))

    def complete(self, result: BenchResult) -> None:  # noqa: D102
        result.facts["last_over_first"] = {name: growth(result, name) for name in result.backends}
        for point in result.points:
            point.facts["prefill"] = asdict(self.prefills[point.tokens])
        result.notes += _growth_notes(result)
        result.notes += [f"{name}: {_DESCRIPTIONS[name]}" for name in result.backends]
        result.tables["processing the context, and resident memory just after"] = self._prefill_rows()

    def _prefill_rows(self) -> Rows:
        rows = [["tokens", "seconds", "tokens/s", "process MiB"]]
        for tokens, found in self.prefills.items():
            speed = f"{tokens / found.seconds:.0f}" if found.seconds else "-"
            rows.append([str(tokens), f"{found.seconds:.2f}", speed, mebibytes(found.resident_bytes)])
        return rows


def _growth_notes(result: BenchResult) -> list[str]:
    first, last = result.points[0].tokens, result.points[-1].tokens
    grown = {name: growth(result, name) for name in result.backends}
    return [
        f"{name}: a token after {last} takes {ratio:.2f} times as long as one after {first}"
        for name, ratio in grown.items()
        if ratio is not None and last != first
    ]
