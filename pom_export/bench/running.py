"""Run a benchmark: prepare a workload, then time it in one worker after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from pom_export.api.progress import Progress, silent
from pom_export.bench.machine import available_bytes, describe_machine
from pom_export.bench.measuring import measure_time
from pom_export.bench.options import TENSORRT, BenchOptions
from pom_export.bench.results import BenchResult, Point
from pom_export.bench.worker import WorkerError, call_in_worker
from pom_export.bench.workload import Workload
from pom_export.errors import InputError

_Result = TypeVar("_Result")
_FOLDER_PREFIX: Final = "pom-export-bench-"
_USABLE_SHARE: Final = 0.8
_GIB: Final = 1 << 30


def bench(workload: Workload, options: BenchOptions, *, progress: Progress = silent) -> BenchResult:
    """Time a workload on every backend, at every size.

    Args:
        workload: what to time.
        options: how to time it.
        progress: called with one line per stage.

    Raises:
        InputError: the workload cannot be prepared, a size does not fit, or nothing could be timed.
        ParityError: backends that compute the same disagree; nothing is returned.
        WorkerError: a process that prepares the workload failed.
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
        points=run.points,
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
        self.points: list[Point] = []

    def time(self) -> None:
        """Time all backends, in one worker per size or in one for all sizes."""
        points = [Point(*size) for size in self._workload.sizes]
        for group in [points] if self._workload.together else [[point] for point in points]:
            self.points += self._time(group)
        if not any(point.timings for point in self.points):
            reasons = self.points[0].skipped if self.points else {}
            raise InputError(f"nothing could be timed: {_reasons(reasons)}", "Choose smaller sizes or other backends")

    def _time(self, points: Sequence[Point]) -> Sequence[Point]:
        self._skip(points)
        backends = [name for name in self._workload.backends if any(name not in point.skipped for point in points)]
        self._progress(f"{_said(points)}: timing {', '.join(backends) or 'nothing'}")
        if backends:
            try:
                return self._call(measure_time, self._workload, backends, points, self._options)
            except WorkerError as error:
                for point in points:
                    point.skipped = {**dict.fromkeys(backends, error.what), **point.skipped}
        return points

    def _skip(self, points: Sequence[Point]) -> None:
        """Skip what would take too long or exhaust the memory; ONNX Runtime keeps the memory that a run has taken."""
        available = available_bytes()
        for point in points:
            for name in self._workload.backends:
                need = self._workload.bytes_needed(name, point.size)
                why = self._workload.excluded(name, point.size) or _too_large(need, available)
                if why:
                    point.skipped[name] = why
                else:
                    available -= need

    def add_memory(self) -> None:
        """Measure the memory of every backend that ran on the CPU, at every size."""
        for point in self.points:
            for name in (name for name in point.timings if name != TENSORRT):
                self._progress(f"{_said([point])}: memory of {name}")
                try:
                    point.memory[name] = self._call(self._workload.measure_memory, name, point.size, self._options)
                except WorkerError as error:
                    self._progress(f"memory of {name} was not measured: {error.what}")

    def _call(self, function: Callable[..., _Result], *arguments: object) -> _Result:
        return call_in_worker(
            function, *arguments,
            folder=self._folder, threads=self._options.threads, environment=self._workload.environment,
        )  # fmt: skip


def _too_large(need: int, available: int) -> str | None:
    if need <= _USABLE_SHARE * available:
        return None
    return f"would need about {need / _GIB:.1f} GiB of memory, {max(available, 0) / _GIB:.1f} GiB are available"


def _said(points: Sequence[Point]) -> str:
    batch = ", ".join(map(str, dict.fromkeys(point.batch for point in points)))
    tokens = ", ".join(map(str, dict.fromkeys(point.tokens for point in points)))
    return f"batch {batch}, tokens {tokens}"
