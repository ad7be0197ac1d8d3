"""How the time of a run grows with its size."""

from __future__ import annotations

from pom_export.bench.results import BenchResult


def growth(result: BenchResult, backend: str) -> float | None:
    """Return how many times as long a run takes at the last size as at the first; None where one is not timed."""
    first, last = (result.points[index].timings.get(backend) for index in (0, -1))
    if first is None or last is None or not first.median_ms:
        return None
    return last.median_ms / first.median_ms
