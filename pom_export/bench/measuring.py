"""Time backends side by side in a worker, after seeing that those which compute the same agree."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import numpy.typing as npt

from pom_export.bench.options import BenchOptions
from pom_export.bench.runners import Bound
from pom_export.bench.workload import Size, Workload
from pom_export.errors import ParityError, reason_of
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import BENCHMARK

Key = tuple[str, Size]
_Arrays = Sequence[npt.NDArray[Any]]
_Name = TypeVar("_Name", bound=Hashable)
_FEWEST: Final = 5
_MOST: Final = 50


@dataclass
class Times:
    """What was timed.

    Attributes:
        seconds: of each run, by backend and size.
        differences: of a backend's outputs from those that it is compared with.
        failed: why a backend could not be loaded or run.
    """

    seconds: dict[Key, list[float]] = field(default_factory=dict)
    differences: dict[Key, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure_time(workload: Workload, sizes: Mapping[str, Sequence[Size]], options: BenchOptions) -> Times:
    """Time backends against each other, after seeing that those which compute the same agree.

    Args:
        workload: what is timed, prepared.
        sizes: of each backend that runs, where.
        options: threads, seed, and how long to time.

    Raises:
        ParityError: two backends that compute the same differ.
    """
    times = Times()
    bound: dict[Key, Bound] = {}
    for group in _groups(workload, sizes):
        expected: dict[Size, tuple[str, _Arrays]] = {}
        for name in group:
            try:
                runner = workload.load(name, sizes[name][0], options.threads)
                found = {size: runner.bind(workload.inputs(name, size, options.seed)) for size in sizes[name]}
            except Exception as error:  # noqa: BLE001 (whatever a runtime raises: the others go on)
                times.failed[name] = f"it failed: {reason_of(error)}"
                continue
            for size, one in found.items():
                bound[name, size] = one
                outputs = workload.compared(one.outputs)
                if size not in expected:
                    expected[size] = name, [output.copy() for output in outputs]
                    continue
                where = f"at {workload.labels.tokens} {size.tokens}: "
                times.differences[name, size] = compare(name, outputs, *expected[size], workload.precision, where)
    runs = {(name, size): bound[name, size].run for name in sizes for size in sizes[name] if (name, size) in bound}
    times.seconds = time_interleaved(runs, options, settled=workload.together)
    return times


def _groups(workload: Workload, names: Mapping[str, object]) -> list[list[str]]:
    """Return the names of backends, those that compute the same together."""
    groups = [[name for name in group if name in names] for group in workload.alike]
    grouped = {name for group in groups for name in group}
    return groups + [[name] for name in names if name not in grouped]


def compare(
    name: str, outputs: _Arrays, against: str, expected: _Arrays, precision: str = "float32", where: str = ""
) -> float:
    """Return the largest difference between two backends' outputs, relative to the largest magnitude.

    Raises:
        ParityError: it is too large, or there is nothing to compare: no outputs, or no finite value in one of them.
    """
    if not expected or len(outputs) != len(expected):
        raise ParityError(
            f"{where}{name} gives {len(outputs)} outputs, {against} {len(expected)}",
            "Nothing was timed: they do not do the same work",
        )
    tolerance = BENCHMARK[precision]
    found = [difference(output, wanted, tolerance) for output, wanted in zip(outputs, expected, strict=True)]
    for each in found:
        if not each:
            reason = f" ({each.reason})" if each.reason else ""
            raise ParityError(
                f"{where}{name} and {against} differ by {each.max_rel:.3g} of the largest output{reason}, tolerance "
                f"{tolerance.relative:g}",
                "Nothing was timed: `pom-export verify` says more",
            )
    return max(each.max_rel for each in found)


def time_interleaved(
    functions: Mapping[_Name, Callable[[], object]], options: BenchOptions, *, settled: bool = False
) -> dict[_Name, list[float]]:
    """Return the seconds that each function took, run by run.

    One run of each makes a round, and whoever began the last round ends the next: what slows the machine for a while
    slows all alike, and nobody always runs in the same one's wake.

    Args:
        functions: by name.
        options: how long to time.
        settled: each timed run comes right after an untimed one of the same function, as in a loop of its own; for
            runs so short that what the one before left in the caches would be seen.
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
                before = time.perf_counter()
                functions[name]()
                times[name].append(time.perf_counter() - before)
            names.append(names.pop(0))
    finally:
        gc.enable()
    return times
