"""Results of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pom_export.bench.options import FUNCTION, KERNEL, Size

Rows = list[list[str]]


@dataclass(frozen=True)
class Summary:
    """Repeated timings of one thing, in milliseconds: quartiles, the fastest run, and how many there were."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    min_ms: float
    runs: int


def summarise(seconds: Sequence[float]) -> Summary:
    """Summarise the seconds that at least one run took."""
    least, lower, median, upper = (1e3 * np.quantile(seconds, [0, 0.25, 0.5, 0.75])).tolist()
    return Summary(median, lower, upper, least, len(seconds))


def ratios(timings: Mapping[str, Summary], to: str) -> dict[str, float]:
    """Return how many times as long as `to` each backend takes, by the medians; empty where `to` was not timed."""
    if to not in timings or not timings[to].median_ms:
        return {}
    return {name: summary.median_ms / timings[to].median_ms for name, summary in timings.items() if name != to}


@dataclass(frozen=True)
class Memory:
    """Memory of one backend at one size.

    Attributes:
        growth_bytes: by how much its process grows with the runs; None where the system does not tell.
        tensor_bytes: of what it holds: weights, inputs and outputs, or, of a stream, what a sequence keeps.
    """

    growth_bytes: int | None
    tensor_bytes: int


@dataclass(frozen=True)
class Labels:
    """The words of a workload's tables; by default those of a file.

    Attributes:
        unit: what the numbers of the first table are.
        tokens: what the sizes are.
        memory: what the numbers of the memory table are.
        ratios: numerators and denominators of the columns behind the timings.
        held: backends whose `tensor_bytes` are shown.
    """

    unit: str = "milliseconds, medians"
    tokens: str = "tokens"
    memory: str = "MiB by which the peak of resident memory grows over two runs, and MiB of weights, inputs and outputs"
    ratios: Sequence[tuple[str, str]] = ((FUNCTION, KERNEL),)
    held: Sequence[str] = (KERNEL,)


@dataclass
class Point:
    """What was measured at one size.

    Attributes:
        batch: B.
        tokens: N; of a stream, how many came before the one that is timed.
        timings: by backend.
        memory: by backend.
        skipped: why a backend was not run at this size.
        differences: of a backend's outputs from those that it is compared with, relative to the largest magnitude.
        facts: what else the workload knows of this size, JSON-able.
    """

    batch: int
    tokens: int
    timings: dict[str, Summary] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> Size:
        """B and N."""
        return Size(self.batch, self.tokens)

    def ratio(self, backend: str, to: str) -> float | None:
        """Return how many times as long one backend takes as another, or None where one was not timed."""
        return ratios(self.timings, to).get(backend)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with every backend's ratio to our kernel."""
        values = asdict(self)
        return {**values.pop("facts"), **values, f"to_{KERNEL}": ratios(self.timings, KERNEL)}


@dataclass
class BenchResult:
    """A whole benchmark.

    Attributes:
        target: one line about what was timed.
        backends: that were run, in the order of the columns.
        not_run: why other backends were not.
        points: one a size.
        machine: see `pom_export.bench.machine.describe_machine`.
        options: the settings that the numbers depend on.
        labels: the words of the tables.
        facts: what else the workload knows, JSON-able.
        notes: what else a reader of the tables must know, a line each.
        tables: more tables, by their titles.
    """

    target: str
    backends: Sequence[str]
    not_run: Mapping[str, str]
    points: list[Point]
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    labels: Labels = field(default_factory=Labels)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, Rows] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "target": self.target,
            "machine": dict(self.machine),
            "options": dict(self.options),
            "backends": list(self.backends),
            "not_run": dict(self.not_run),
            **self.facts,
            "points": [point.to_dict() for point in self.points],
        }
