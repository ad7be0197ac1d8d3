"""Summarise repeated timings by their median and spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


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


def summarise(seconds: Sequence[float]) -> Summary:
    """Summarise the seconds that at least one run took."""
    least, lower, median, upper = (1e3 * np.quantile(seconds, [0, 0.25, 0.5, 0.75])).tolist()
    return Summary(median, lower, upper, least, len(seconds))


def ratios(timings: Mapping[str, Summary], to: str) -> dict[str, float]:
    """Return how many times as long as `to` each backend takes, by the medians; empty where `to` was not timed."""
    if to not in timings or not timings[to].median_ms:
        return {}
    return {name: summary.median_ms / timings[to].median_ms for name, summary in timings.items() if name != to}
