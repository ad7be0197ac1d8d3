"""The benchmark of a stream: one worker takes in the tokens, one times the steps, one a backend measures memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from pom_export.api.progress import Progress
from pom_export.bench.machine import describe_machine
from pom_export.bench.options import FUNCTION, KERNEL, BenchOptions
from pom_export.bench.processes import WorkerError, run_worker
from pom_export.bench.statistics import summarise
from pom_export.bench.stream.preparing import StreamPrepared, prepare_stream
from pom_export.bench.stream.results import Prefill, StreamMemory, StreamPoint, StreamResult
from pom_export.bench.stream.work import MEMORY, PREFILL, STEPS
from pom_export.bench.targets import StreamShape
from pom_export.bench.timing import Effort
from pom_export.bench.worker import Job
from pom_export.errors import InputError

REPEATS: Final = 200


def bench_stream(
    shape: StreamShape,
    options: BenchOptions,
    *,
    folder_prefix: str,
    progress: Progress,
    steps: Callable[[int, int], None],
) -> StreamResult:
    """Time the next token after contexts of every length, on every backend.

    Args:
        shape: of the model.
        options: how; `tokens` are the contexts, without `repeats` there are 200 rounds whatever the budget.
        folder_prefix: of the name of the folder that the workers share.
        progress: called with one line a stage.
        steps: told how much is done.

    Raises:
        InputError: the shape is not possible, an option does not fit a stream, or nothing could be timed.
        ParityError: backends that compute the same disagree; nothing is returned.
        WorkerError: the tokens could not be taken in.
    """
    effort = replace(options.effort, repeats=options.effort.repeats or REPEATS)
    with tempfile.TemporaryDirectory(prefix=folder_prefix) as name:
        prepared = prepare_stream(shape, options, Path(name), progress)
        run = _Run(prepared, options, effort, progress, steps)
        run.prefill()
        run.time()
        if options.memory:
            run.add_memory()
    return StreamResult(
        prepared.summary,
        list(prepared.contexts),
        prepared.not_run,
        run.points,
        describe_machine(),
        {
            "dtype": "float32",
            "threads": options.thread_count,
            "seed": options.seed,
            **asdict(effort),
            "inputs": "mixers: the state of random tokens; attention: random keys and values; bound once",
            "spinning": False,
        },
    )


class _Run:
    """The workers of one benchmark, and how far they are."""

    def __init__(
        self,
        prepared: StreamPrepared,
        options: BenchOptions,
        effort: Effort,
        progress: Progress,
        steps: Callable[[int, int], None],
    ) -> None:
        self._prepared, self._options, self._effort = prepared, options, effort
        self._progress, self._steps = progress, steps
        self._all = 2 + (sum(map(len, prepared.contexts.values())) if options.memory else 0)
        self._done = 0
        contexts = sorted({context for found in prepared.contexts.values() for context in found})
        self._by_tokens = {n: StreamPoint(n, skipped=dict(prepared.skipped.get(n, {}))) for n in contexts}
        steps(0, self._all)

    @property
    def points(self) -> list[StreamPoint]:
        return list(self._by_tokens.values())

    def prefill(self) -> None:
        name = KERNEL if KERNEL in self._prepared.contexts else FUNCTION
        contexts = self._prepared.contexts[name]
        self._progress(f"taking in {max(contexts)} tokens with {name}")
        result = run_worker(self._job(PREFILL, {name: contexts}))
        for stop in result["stops"]:
            self._by_tokens[stop["tokens"]].prefill = Prefill(stop["seconds"], stop["resident_bytes"])
        self._step()

    def time(self) -> None:
        self._progress(
            f"{self._effort.repeats} rounds of one token after {', '.join(map(str, self._by_tokens))}: "
            f"timing {', '.join(self._prepared.contexts)}"
        )
        result = run_worker(self._job(STEPS, self._prepared.contexts))
        for found in result["results"]:
            point = self._by_tokens[found["tokens"]]
            point.timings[found["backend"]] = summarise(found["seconds"])
            point.state_bytes[found["backend"]] = found["state_bytes"]
        for found in result["differences"]:
            self._by_tokens[found["tokens"]].differences[found["backend"]] = found["difference"]
        for name, why in result["failed"].items():
            for point in self.points:
                if name not in point.timings:
                    point.skipped.setdefault(name, why)
        if not result["results"]:
            reasons = "; ".join(f"{name}: {why}" for name, why in result["failed"].items())
            raise InputError(f"nothing could be timed: {reasons}", "Choose other backends")
        self._step()

    def add_memory(self) -> None:
        for name, contexts in self._prepared.contexts.items():
            for context in contexts:
                if name in self._by_tokens[context].timings:
                    self._measure_memory(name, context)
                self._step()

    def _measure_memory(self, name: str, context: int) -> None:
        self._progress(f"after {context} tokens: memory of {name}")
        try:
            result = run_worker(self._job(MEMORY, {name: [context]}))
            self._by_tokens[context].memory[name] = StreamMemory(**result)
        except WorkerError as error:
            self._progress(f"memory of {name} was not measured: {error.what}")

    def _job(self, task: str, contexts: dict[str, list[int]]) -> Job:
        return Job(
            task=task,
            folder=str(self._prepared.folder),
            model="",
            backends=list(contexts),
            batch=1,
            tokens=1,
            threads=self._options.thread_count,
            seed=self._options.seed,
            effort=asdict(self._effort),
            contexts=contexts,
        )

    def _step(self) -> None:
        self._done += 1
        self._steps(self._done, self._all)
