"""What is said of repeated timings: the median, and how far they spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Summary:
    """Repeated timings of one thing, in milliseconds.

    Attributes:
        median_ms: half of the runs took less.
        lower_ms: the lower quartile.
        upper_ms: the upper quartile.
        min_ms: the fastest run.
        runs: how many there were.
    """

    median_ms: float
    lower_ms: float
    upper_ms: float
    min_ms: float
    runs: int

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` of sorted, non-empty values lie, between two of them where need be."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def summarise(seconds: Sequence[float]) -> Summary:
    """Summarise the seconds that at least one run took."""
    ordered = sorted(1e3 * value for value in seconds)
    return Summary(quantile(ordered, 0.5), quantile(ordered, 0.25), quantile(ordered, 0.75), ordered[0], len(ordered))


def ratios(timings: Mapping[str, Summary], to: str) -> dict[str, float]:
    """Return how many times as long as `to` each backend takes, by the medians; empty where `to` was not timed."""
    if to not in timings or not timings[to].median_ms:
        return {}
    return {name: summary.median_ms / timings[to].median_ms for name, summary in timings.items() if name != to}
