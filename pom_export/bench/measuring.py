"""Measure the time of all backends side by side, in a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pom_export.bench.agreement import compare
from pom_export.bench.runners import Array, Bound
from pom_export.bench.timing import Effort, time_interleaved
from pom_export.bench.workload import Conditions, Size, Workload
from pom_export.errors import ParityError, reason_of

Key = tuple[str, Size]


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


def measure_time(
    workload: Workload, sizes: Mapping[str, Sequence[Size]], conditions: Conditions, effort: Effort
) -> Times:
    """Time backends against each other, after seeing that those which compute the same agree.

    Args:
        workload: what is timed, prepared.
        sizes: of each backend that runs, where.
        conditions: threads and seed.
        effort: how long to time.

    Raises:
        ParityError: two backends of a group differ.
    """
    times = Times()
    bound: dict[Key, Bound] = {}
    references: dict[tuple[int, Size], tuple[str, list[Array]]] = {}
    for name in _references_first(workload, sizes):
        try:
            found = _bind(workload, name, sizes[name], conditions)
        except Exception as error:  # noqa: BLE001 (whatever a runtime raises: the others go on)
            times.failed[name] = f"it failed: {reason_of(error)}"
            continue
        for size, one in found.items():
            bound[name, size] = one
            group = _group(workload, name)
            if group is None:
                continue
            outputs = workload.compared(one.outputs)
            if (group, size) in references:
                times.differences[name, size] = _compare(workload, name, size, outputs, references[group, size])
            else:
                references[group, size] = name, [output.copy() for output in outputs]
    runs = {(name, size): bound[name, size].run for name in sizes for size in sizes[name] if (name, size) in bound}
    times.seconds = time_interleaved(runs, effort, settled=workload.together)
    return times


def _group(workload: Workload, name: str) -> int | None:
    return next((index for index, group in enumerate(workload.alike) if name in group), None)


def _references_first(workload: Workload, names: Mapping[str, object]) -> list[str]:
    order = [name for group in workload.alike for name in group]
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def _bind(workload: Workload, name: str, sizes: Sequence[Size], conditions: Conditions) -> dict[Size, Bound]:
    runner = workload.load(name, sizes[0], conditions.threads)
    return {size: runner.bind(workload.inputs(name, size, conditions.seed)) for size in sizes}


def _compare(
    workload: Workload, name: str, size: Size, outputs: Sequence[Array], reference: tuple[str, list[Array]]
) -> float:
    try:
        return compare(name, outputs, *reference, workload.precision)
    except ParityError as error:
        raise ParityError(f"at {workload.labels.tokens} {size.tokens}: {error.what}", error.hint) from error
