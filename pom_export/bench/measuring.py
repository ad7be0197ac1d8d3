"""Time backends side by side in a worker, after checking that those that compute the same agree."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypeVar

import numpy.typing as npt

from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Point, summarise
from pom_export.bench.runners import Bound
from pom_export.bench.workload import Workload
from pom_export.errors import ParityError, reason_of
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import BENCHMARK

_Arrays = Sequence[npt.NDArray[Any]]
_Name = TypeVar("_Name", bound=Hashable)
_FEWEST: Final = 5
_MOST: Final = 50


def measure_time(
    workload: Workload, backends: Sequence[str], points: Sequence[Point], options: BenchOptions
) -> Sequence[Point]:
    """Time backends side by side, after checking that those that compute the same agree.

    Args:
        workload: what to time, prepared.
        backends: their names, in the order of the first round.
        points: the sizes; a backend that a point skips is not timed there.
        options: threads, seed, and number of rounds.

    Returns:
        The points with timings, differences, and as skipped the backends that could not be loaded or run.

    Raises:
        ParityError: two backends that compute the same differ.
    """
    bound: dict[tuple[str, Size], Bound] = {}
    for group in _groups(workload, backends):
        expected: dict[Size, tuple[str, _Arrays]] = {}
        for name in group:
            where = [point for point in points if name not in point.skipped]
            try:
                runner = workload.load(name, where[0].size, options.threads)
                found = [runner.bind(workload.inputs(name, point.size, options.seed)) for point in where]
            except Exception as error:  # noqa: BLE001 (whatever a runtime raises, the other backends continue)
                for point in where:
                    point.skipped[name] = f"it failed: {reason_of(error)}"
                continue
            for point, one in zip(where, found, strict=True):
                bound[name, point.size] = one
                outputs = workload.compared(one.outputs)
                if point.size not in expected:
                    expected[point.size] = name, [output.copy() for output in outputs]
                    continue
                at = f"at {workload.labels.tokens} {point.tokens}: "
                point.differences[name] = compare(name, outputs, *expected[point.size], workload.compared_as, at)
    keys = [(name, point.size) for name in backends for point in points if (name, point.size) in bound]
    functions = {key: bound[key].run for key in keys}
    settled = workload.together or workload.turn_s > 0
    times = time_interleaved(functions, options, settled=settled, turn_s=workload.turn_s)
    for point in points:
        point.timings = {name: summarise(seconds) for (name, size), seconds in times.items() if size == point.size}
    return points


def _groups(workload: Workload, backends: Sequence[str]) -> list[list[str]]:
    """Return the backends in groups that compute the same."""
    groups = [[name for name in group if name in backends] for group in workload.alike]
    grouped = {name for group in groups for name in group}
    return groups + [[name] for name in backends if name not in grouped]


def compare(
    name: str, outputs: _Arrays, against: str, expected: _Arrays, precision: str = "float32", where: str = ""
) -> float:
    """Return the largest difference between two backends' outputs, relative to the largest magnitude.

    Raises:
        ParityError: it is too large, or there is nothing to compare: no outputs, or an output without finite values.
    """
    if not expected or len(outputs) != len(expected):
        raise ParityError(
            f"{where}{name} gives {len(outputs)} outputs, {against} {len(expected)}",
            "Nothing was timed, since they do not do the same work",
        )
    tolerance = BENCHMARK[precision]
    found = [difference(output, wanted, tolerance) for output, wanted in zip(outputs, expected, strict=True)]
    for each in found:
        if not each:
            reason = f" ({each.reason})" if each.reason else ""
            raise ParityError(
                f"{where}{name} and {against} differ by {each.max_rel:.3g} of the largest output{reason}, tolerance "
                f"{tolerance.relative:g}",
                "Nothing was timed. Run `pom-export verify` for details",
            )
    return max(each.max_rel for each in found)


def time_interleaved(
    functions: Mapping[_Name, Callable[[], object]],
    options: BenchOptions,
    *,
    settled: bool = False,
    turn_s: float = 0.0,
) -> dict[_Name, list[float]]:
    """Return the seconds of each run of each function.

    In a round, each function has a turn, and the first function of a round is the last of the next. Whatever slows the
    machine for a while slows all functions alike, and none always follows the same other.

    Args:
        functions: by name.
        options: number of rounds, or the time budget.
        settled: begin each turn with an untimed run, as if the function ran in a loop; for runs so short that the
            caches' contents matter.
        turn_s: seconds after which a turn has no further run; it has at least one.
    """
    names = list(functions)
    times: dict[_Name, list[float]] = {name: [] for name in names}
    for _ in range(options.warmup):
        for function in functions.values():
            function()
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        for done in range((options.repeats or _MOST) if names else 0):
            spent = time.perf_counter() - started
            if options.repeats is None and done >= _FEWEST and spent > options.budget_s:
                break
            for name in names:
                if settled:
                    functions[name]()
                before = begun = time.perf_counter()
                while True:
                    functions[name]()
                    after = time.perf_counter()
                    times[name].append(after - before)
                    if after - begun >= turn_s:
                        break
                    before = after
            names.append(names.pop(0))
    finally:
        gc.enable()
    return times
