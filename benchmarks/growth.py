"""Growth of a run's time with its size."""

from __future__ import annotations

from pom_export.bench.results import BenchResult


def growth(result: BenchResult, backend: str) -> float | None:
    """Return the time at the last size divided by that at the first, or None if one was not timed."""
    first, last = (result.points[index].timings.get(backend) for index in (0, -1))
    if first is None or last is None or not first.median_ms:
        return None
    return last.median_ms / first.median_ms
