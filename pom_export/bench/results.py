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
    """Summary of repeated timings in milliseconds: quartiles, the fastest run, 99 % of them, and the number of runs."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    min_ms: float
    p99_ms: float
    runs: int


def summarise(seconds: Sequence[float]) -> Summary:
    """Summarise the seconds of at least one run."""
    least, lower, median, upper, most = (1e3 * np.quantile(seconds, [0, 0.25, 0.5, 0.75, 0.99])).tolist()
    return Summary(median, lower, upper, least, most, len(seconds))


def ratios(timings: Mapping[str, Summary], to: str) -> dict[str, float]:
    """Return each backend's median time divided by that of `to`; empty if `to` was not timed."""
    if to not in timings or not timings[to].median_ms:
        return {}
    return {name: summary.median_ms / timings[to].median_ms for name, summary in timings.items() if name != to}


@dataclass(frozen=True)
class Memory:
    """Memory of a backend at a size.

    Attributes:
        growth_bytes: growth of its process over the runs; None if the system does not report it.
        tensor_bytes: size of weights, inputs and outputs or, for streams, of what one of them keeps.
    """

    growth_bytes: int | None
    tensor_bytes: int


@dataclass(frozen=True)
class Labels:
    """Texts and columns of a workload's tables; by default those of a file.

    Attributes:
        unit: what the first table shows.
        tokens: header of the column of sizes.
        memory: what the memory table shows.
        ratios: numerators and denominators of the columns of ratios.
        held: backends whose `tensor_bytes` are shown.
    """

    unit: str = "milliseconds, medians"
    tokens: str = "tokens"
    memory: str = "MiB by which the peak of resident memory grows over two runs, and MiB of weights, inputs and outputs"
    ratios: Sequence[tuple[str, str]] = ((FUNCTION, KERNEL),)
    held: Sequence[str] = (KERNEL,)


@dataclass
class Point:
    """Measurements at one size.

    Attributes:
        batch: B.
        tokens: N; for a stream, the number of tokens before the timed one; for a server, the number of streams.
        timings: by backend.
        memory: by backend.
        skipped: the reason, for each backend that was not run at this size.
        differences: difference of a backend's outputs from the reference's, relative to the largest magnitude.
        facts: further values of the workload for this size, JSON-able.
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
        """Return a backend's median time divided by another's, or None if one was not timed."""
        return ratios(self.timings, to).get(backend)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values, with every backend's ratio to our kernel."""
        values = asdict(self)
        return {**values.pop("facts"), **values, f"to_{KERNEL}": ratios(self.timings, KERNEL)}


@dataclass
class BenchResult:
    """Results of a whole benchmark.

    Attributes:
        target: one line that says what was timed.
        backends: the backends that were run, in the order of the columns.
        not_run: the reason, for each backend that was not run at all.
        points: measurements, one per size.
        machine: see `pom_export.bench.machine.describe_machine`.
        options: the settings that the numbers depend on.
        labels: texts of the tables.
        facts: further values of the workload, JSON-able.
        notes: further lines below the tables.
        tables: further tables, by title.
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
