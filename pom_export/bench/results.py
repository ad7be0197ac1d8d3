"""Results of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.bench.statistics import Summary, ratios

Rows = list[list[str]]


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
    """The words of a workload's tables.

    Attributes:
        base: the backend that others are set against.
        unit: what the numbers of the first table are.
        tokens: what the sizes are.
        memory: what the numbers of the memory table are.
        ratios: numerators and denominators of the columns behind the timings.
        held: backends whose `tensor_bytes` are shown.
    """

    base: str
    unit: str
    tokens: str
    memory: str
    ratios: Sequence[tuple[str, str]]
    held: Sequence[str]


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

    def ratio(self, backend: str, to: str) -> float | None:
        """Return how many times as long one backend takes as another, or None where one was not timed."""
        return ratios(self.timings, to).get(backend)

    def to_dict(self, base: str) -> dict[str, Any]:
        """Return JSON-able values, with every backend's ratio to `base`."""
        values = asdict(self)
        return {**values.pop("facts"), **values, f"to_{base}": ratios(self.timings, base)}


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
    labels: Labels
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    tables: dict[str, Rows] = field(default_factory=dict)

    def growth(self, backend: str) -> float | None:
        """Return how many times as long a run takes at the last size as at the first; None where one is not timed."""
        first, last = (self.points[index].timings.get(backend) for index in (0, -1))
        if first is None or last is None or not first.median_ms:
            return None
        return last.median_ms / first.median_ms

    def has_memory(self) -> bool:
        """Return whether memory was measured."""
        return any(point.memory for point in self.points)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "target": self.target,
            "machine": dict(self.machine),
            "options": dict(self.options),
            "backends": list(self.backends),
            "not_run": dict(self.not_run),
            **self.facts,
            "points": [point.to_dict(self.labels.base) for point in self.points],
        }
