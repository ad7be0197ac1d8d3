"""What a benchmark of a stream found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pom_export.bench.options import KERNEL
from pom_export.bench.results import Measured, Timed
from pom_export.bench.statistics import Summary, ratios


@dataclass(frozen=True)
class StreamMemory:
    """Memory of a process that streams on one backend from one context.

    Attributes:
        resident_bytes: all that is resident after a few steps, libraries and weights included.
        growth_bytes: by how much that is more than after a step from no context.
    """

    resident_bytes: int
    growth_bytes: int


@dataclass(frozen=True)
class Prefill:
    """How the tokens of a context were taken in.

    Attributes:
        seconds: from the first one on.
        resident_bytes: of the process, just after the last one.
    """

    seconds: float
    resident_bytes: int


@dataclass
class StreamPoint(Timed):
    """What was measured after one context.

    Attributes:
        tokens: how many came before the one that is timed.
        timings: of that one, by backend.
        state_bytes: what a sequence keeps, by backend: the state, or the cache.
        memory: by backend.
        skipped: why a backend was not run here.
        differences: of a backend's logits from those of the one that computes the same.
        prefill: how the model with mixers got here.
    """

    tokens: int
    timings: dict[str, Summary] = field(default_factory=dict)
    state_bytes: dict[str, int] = field(default_factory=dict)
    memory: dict[str, StreamMemory] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    prefill: Prefill | None = None


@dataclass
class StreamResult(Measured):
    """A whole benchmark of a stream.

    Attributes:
        points: one a context, the shortest first.
    """

    points: list[StreamPoint]

    def growth(self, backend: str) -> float | None:
        """Return how many times as long a token takes after the longest context as after the shortest.

        None where a backend was not timed after one of them.
        """
        first, last = (self.points[index].timings.get(backend) for index in (0, -1))
        if first is None or last is None or not first.median_ms:
            return None
        return last.median_ms / first.median_ms

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {
            **self.facts(),
            "last_over_first": {name: self.growth(name) for name in self.backends},
            "points": [{**asdict(point), "to_kernel": ratios(point.timings, KERNEL)} for point in self.points],
        }
