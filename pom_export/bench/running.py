"""The benchmark: prepare a target, then one worker after the other."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from pom_export.api.progress import Progress, silent
from pom_export.bench.guards import DEFAULT_FLOPS_PER_S, estimate_bytes, reason_to_skip, sizes_of
from pom_export.bench.machine import available_bytes, describe_machine
from pom_export.bench.options import TENSORRT, BenchOptions
from pom_export.bench.preparing import Prepared, prepare
from pom_export.bench.processes import WorkerError, run_worker
from pom_export.bench.results import BenchResult, Memory, Point
from pom_export.bench.roofline import Roofline
from pom_export.bench.statistics import summarise
from pom_export.bench.stream.results import StreamResult
from pom_export.bench.targets import Target
from pom_export.bench.worker import MEMORY, ROOFLINE, TIME, Job
from pom_export.errors import InputError

Steps = Callable[[int, int], None]
"""Told the number of steps that are done, and of all."""


def _no_steps(_: int, __: int) -> None:
    pass


_FOLDER_PREFIX: Final = "pom-export-bench-"


def bench(
    target: Target, options: BenchOptions, *, progress: Progress = silent, steps: Steps = _no_steps
) -> BenchResult | StreamResult:
    """Time a target on every backend, at every size.

    Args:
        target: see `pom_export.bench.targets.find_target`.
        options: how.
        progress: called with one line a stage.
        steps: told how much is done.

    Raises:
        InputError: the target cannot be read, a size does not fit, or nothing could be timed at all.
        ParityError: backends that compute the same disagree; nothing is returned.
        WorkerError: of a stream: its tokens could not be taken in.
    """
    if target.stream is not None:
        from pom_export.bench.stream.running import bench_stream

        return bench_stream(target.stream, options, progress=progress, steps=steps, folder_prefix=_FOLDER_PREFIX)
    with tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX) as name:
        parts = _prepare(target, options, Path(name), progress)
        run = _Run(parts, options, progress, steps)
        roofline = run.roofline() if options.roofline else None
        measured = [(part, run.point(part, batch, tokens, roofline)) for part in parts for batch, tokens in part.points]
        if options.memory:
            for part, point in measured:
                run.add_memory(part, point)
    points, prepared = [point for _, point in measured], parts[0]
    if not any(point.timings for point in points):
        reasons = "; ".join(f"{name}: {why}" for name, why in points[0].skipped.items())
        raise InputError(f"nothing could be timed: {reasons}", "Choose smaller sizes or other backends")
    return BenchResult(
        prepared.summary,
        prepared.backends,
        prepared.not_run,
        points,
        describe_machine(),
        _settings(prepared, options),
        roofline,
    )


def _prepare(target: Target, options: BenchOptions, folder: Path, progress: Progress) -> list[Prepared]:
    """Return what there is to run: of an image model, which is fixed to a size, one a size."""
    if target.image is None:
        return [prepare(target, options, folder, progress)]
    from pom_export.bench.image import prepare_image

    return prepare_image(target.image, options, folder, progress)


def _settings(prepared: Prepared, options: BenchOptions) -> dict[str, Any]:
    effort = asdict(options.effort)
    return {
        "dtype": prepared.model.precision,
        "threads": options.thread_count,
        "seed": options.seed,
        **effort,
        "longest_run_s": options.longest_run_s,
        "inputs": "random, bound once",
        "spinning": False,
    }


class _Run:
    """The workers of one benchmark, and how far they are."""

    def __init__(self, parts: Sequence[Prepared], options: BenchOptions, progress: Progress, steps: Steps) -> None:
        self._parts, self._options, self._progress, self._steps = parts, options, progress, steps
        points = sum(len(part.points) for part in parts)
        memory = sum(len(part.points) * len(part.backends) for part in parts) if options.memory else 0
        self._all = options.roofline + points + memory
        self._done = 0
        steps(0, self._all)

    def roofline(self) -> Roofline:
        self._progress("measuring the machine: bandwidth and matrix products")
        result = Roofline.from_dict(run_worker(self._job(self._parts[0], ROOFLINE, [], 1, 1)))
        self._step()
        return result

    def point(self, part: Prepared, batch: int, tokens: int, roofline: Roofline | None) -> Point:
        point = Point(batch, tokens)
        work, options = part.work, self._options
        flops = DEFAULT_FLOPS_PER_S if roofline is None else roofline.flops_per_s
        available = available_bytes()
        for name in part.backends:
            why = reason_to_skip(name, work, (batch, tokens), available, flops, options.longest_run_s)
            if why:
                point.skipped[name] = why
            else:  # all of them live in one process, and ONNX Runtime keeps what a run has taken
                available -= estimate_bytes(name, work, batch, tokens)
        backends = [name for name in part.backends if name not in point.skipped]
        self._progress(f"batch {batch}, tokens {tokens}: timing {', '.join(backends) or 'nothing'}")
        if backends:
            self._time(part, point, backends)
        if roofline is not None:
            traffic = sum(product.traffic_bytes(sizes_of(batch, tokens)) for product in work.products)
            point.memory_roofline_ms = roofline.memory_ms(traffic) if traffic else None
        self._step()
        return point

    def _time(self, part: Prepared, point: Point, backends: list[str]) -> None:
        try:
            result = run_worker(self._job(part, TIME, backends, point.batch, point.tokens))
        except WorkerError as error:
            point.skipped |= dict.fromkeys(backends, error.what)
            return
        point.timings = {name: summarise(seconds) for name, seconds in result["times"].items()}
        point.differences = result["differences"]
        point.skipped |= result["failed"]

    def add_memory(self, part: Prepared, point: Point) -> None:
        """Measure the memory of every backend that ran on the CPU at a size."""
        for name in part.backends:
            if name in point.timings and name != TENSORRT:
                self._progress(f"batch {point.batch}, tokens {point.tokens}: memory of {name}")
                try:
                    result = run_worker(self._job(part, MEMORY, [name], point.batch, point.tokens))
                    point.memory[name] = Memory(**result)
                except WorkerError as error:
                    self._progress(f"memory of {name} was not measured: {error.what}")
            self._step()

    def _job(self, part: Prepared, task: str, backends: list[str], batch: int, tokens: int) -> Job:
        options = self._options
        return Job(
            task=task,
            folder=str(part.folder),
            model=str(part.model.path.absolute()),
            backends=backends,
            batch=batch,
            tokens=tokens,
            threads=options.thread_count,
            seed=options.seed,
            effort=asdict(options.effort),
        )

    def _step(self) -> None:
        self._done += 1
        self._steps(self._done, self._all)
