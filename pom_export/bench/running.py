"""Run a benchmark: prepare a workload, then start one worker after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pom_export.api.progress import Progress, silent
from pom_export.bench.machine import available_bytes, describe_machine
from pom_export.bench.measuring import measure_time
from pom_export.bench.options import TENSORRT, BenchOptions
from pom_export.bench.results import BenchResult, Point, summarise
from pom_export.bench.worker import WorkerError, call_in_worker
from pom_export.bench.workload import Size, Workload
from pom_export.errors import InputError

_FOLDER_PREFIX: Final = "pom-export-bench-"
_USABLE_SHARE: Final = 0.8
_GIB: Final = 1 << 30


def bench(workload: Workload, options: BenchOptions, *, progress: Progress = silent) -> BenchResult:
    """Time a workload on every backend, at every size.

    Args:
        workload: what to time.
        options: how.
        progress: called with one line a stage.

    Raises:
        InputError: the workload cannot be prepared, a size does not fit, or nothing could be timed at all.
        ParityError: backends that compute the same disagree; nothing is returned.
        WorkerError: the workload's preparation failed in a process of its own.
    """
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX) as name:
        workload.prepare(options, Path(name), progress)
        if not workload.backends:
            raise InputError(f"no backend can run: {_reasons(workload.not_run)}", "Choose others")
        run = _Run(workload, options, Path(name), progress)
        run.time()
        if options.memory:
            run.add_memory()
    result = BenchResult(
        target=workload.summary,
        backends=workload.backends,
        not_run=workload.not_run,
        points=list(run.points.values()),
        machine=describe_machine(),
        options={
            "dtype": workload.precision,
            **{name: getattr(options, name) for name in ("threads", "seed", "warmup", "repeats", "budget_s")},
            "inputs": "random, bound once",
            "spinning": False,
        },
        labels=workload.labels,
    )
    workload.complete(result)
    return result


def _reasons(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in reasons.items())


class _Run:
    """The workers of one benchmark."""

    def __init__(self, workload: Workload, options: BenchOptions, folder: Path, progress: Progress) -> None:
        self._workload, self._options, self._folder, self._progress = workload, options, folder, progress
        self.points = {size: Point(*size) for size in workload.sizes}

    def time(self) -> None:
        """Time all backends, in one worker a size or in one for all."""
        sizes = self._workload.sizes
        for group in [sizes] if self._workload.together else [[size] for size in sizes]:
            self._time(group)
        if not any(point.timings for point in self.points.values()):
            reasons = next((point.skipped for point in self.points.values()), {})
            raise InputError(f"nothing could be timed: {_reasons(reasons)}", "Choose smaller sizes or other backends")

    def _time(self, group: Sequence[Size]) -> None:
        self._skip(group)
        sizes = {
            name: found
            for name in self._workload.backends
            if (found := [size for size in group if name not in self.points[size].skipped])
        }
        self._progress(f"{_said(group)}: timing {', '.join(sizes) or 'nothing'}")
        if not sizes:
            return
        try:
            times = self._call(measure_time, self._workload, sizes, self._options)
        except WorkerError as error:
            failed = dict.fromkeys(sizes, error.what)
        else:
            failed = times.failed
            for (name, size), seconds in times.seconds.items():
                self.points[size].timings[name] = summarise(seconds)
            for (name, size), difference in times.differences.items():
                self.points[size].differences[name] = difference
        for name, why in failed.items():
            for size in sizes[name]:
                self.points[size].skipped[name] = why

    def _skip(self, group: Sequence[Size]) -> None:
        """Leave out what would take too long or bring the machine down; ONNX Runtime keeps what a run has taken."""
        available = available_bytes()
        for size in group:
            for name in self._workload.backends:
                need = self._workload.bytes_needed(name, size)
                why = self._workload.excluded(name, size) or _too_large(need, available)
                if why:
                    self.points[size].skipped[name] = why
                else:
                    available -= need

    def add_memory(self) -> None:
        """Measure the memory of every backend that ran on the CPU, at every size."""
        for size, point in self.points.items():
            for name in self._workload.backends:
                if name in point.timings and name != TENSORRT:
                    self._progress(f"{_said([size])}: memory of {name}")
                    try:
                        point.memory[name] = self._call(self._workload.measure_memory, name, size, self._options)
                    except WorkerError as error:
                        self._progress(f"memory of {name} was not measured: {error.what}")

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return call_in_worker(
            function, *arguments,
            folder=self._folder, threads=self._options.threads, environment=self._workload.environment,
        )  # fmt: skip


def _too_large(need: int, available: int) -> str | None:
    if need <= _USABLE_SHARE * available:
        return None
    return f"would need about {need / _GIB:.1f} GiB of memory, {max(available, 0) / _GIB:.1f} GiB are left"


def _said(sizes: Sequence[Size]) -> str:
    batch = ", ".join(map(str, dict.fromkeys(size.batch for size in sizes)))
    tokens = ", ".join(map(str, dict.fromkeys(size.tokens for size in sizes)))
    return f"batch {batch}, tokens {tokens}"
