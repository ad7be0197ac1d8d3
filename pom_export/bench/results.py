"""What a benchmark found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pom_export.bench.options import KERNEL, MATMUL
from pom_export.bench.roofline import Roofline
from pom_export.bench.statistics import Summary, ratios


@dataclass(frozen=True)
class Memory:
    """Memory of one backend at one size.

    Attributes:
        growth_bytes: by how much the peak of resident memory, over two runs, exceeds what was resident with the
            model loaded and the inputs made; None where the system does not tell.
        tensor_bytes: weights, inputs and outputs.
    """

    growth_bytes: int | None
    tensor_bytes: int


class Timed:
    """What was timed at one point, by backend."""

    timings: dict[str, Summary]

    def ratio(self, backend: str, to: str) -> float | None:
        """Return how many times as long one backend takes as another, or None where one was not timed."""
        return ratios(self.timings, to).get(backend)


@dataclass
class Point(Timed):
    """What was measured at one size.

    Attributes:
        batch: B.
        tokens: N.
        timings: by backend.
        memory: by backend.
        skipped: why a backend was not run at this size.
        differences: of each backend's outputs from those of the first, relative to the largest magnitude.
        memory_roofline_ms: what moving the bytes of the products and of what lies between them takes.
    """

    batch: int
    tokens: int
    timings: dict[str, Summary] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    memory_roofline_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            "batch": self.batch,
            "tokens": self.tokens,
            "timings": {name: summary.to_dict() for name, summary in self.timings.items()},
            "to_matmul": ratios(self.timings, MATMUL),
            "to_kernel": ratios(self.timings, KERNEL),
            "memory": {name: vars(memory) for name, memory in self.memory.items()},
            "memory_roofline_ms": self.memory_roofline_ms,
            "differences": self.differences,
            "skipped": self.skipped,
        }


@dataclass
class Measured:
    """What every benchmark's result says.

    Attributes:
        target: one line about what was timed.
        backends: that were run, in the order of the columns.
        not_run: why other backends were not.
        points: one a size or a context.
        machine: see `pom_export.bench.machine.describe_machine`.
        options: the settings that the numbers depend on.
    """

    target: str
    backends: Sequence[str]
    not_run: Mapping[str, str]
    points: list[Any]
    machine: Mapping[str, Any]
    options: Mapping[str, Any]

    def facts(self) -> dict[str, Any]:
        """Return all but the points as JSON-able values."""
        return {
            "target": self.target,
            "machine": dict(self.machine),
            "options": dict(self.options),
            "backends": list(self.backends),
            "not_run": dict(self.not_run),
        }


@dataclass
class BenchResult(Measured):
    """A whole benchmark.

    Attributes:
        points: one a size.
        roofline: the machine's limits; None where they were not measured.
    """

    points: list[Point]
    roofline: Roofline | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            **self.facts(),
            "roofline": None if self.roofline is None else self.roofline.to_dict(),
            "points": [point.to_dict() for point in self.points],
        }
