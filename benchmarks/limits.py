"""The project's limits for its speed, each for a ratio within one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.growth import growth
from benchmarks.names import KERNEL
from pom_export.bench.results import BenchResult


@dataclass(frozen=True)
class Limit:
    """A ratio and its limit.

    Attributes:
        what: the ratio, the run and the size.
        seen: the value; None if it was not measured.
        limit: the limit.
        at_most: whether the limit is the largest value that passes; otherwise, it is the smallest.
    """

    what: str
    seen: float | None
    limit: float
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether it was measured and is within the limit."""
        if self.seen is None:
            return False
        return self.seen <= self.limit if self.at_most else self.seen >= self.limit

    def __str__(self) -> str:
        seen = "not measured" if self.seen is None else f"{self.seen:.2f}"
        verdict = "pass" if self.passed else "FAIL" if self.seen is not None else "-"
        return f"{verdict:<5} {seen:>12}  {'at most' if self.at_most else 'at least'} {self.limit:<5g} {self.what}"


Check = Callable[[str, BenchResult], Iterator[Limit]]
"""A function of the name of a run and its result, which yields the limits with their values."""


def at_most(backend: str, baseline: str, limits: dict[int, float]) -> Check:
    """Return a check that a backend's time divided by a baseline's is at most a limit, by number of tokens."""
    return lambda name, result: _ratios(name, result, backend, baseline, limits, at_most=True)


def at_least(backend: str, baseline: str, limits: dict[int, float]) -> Check:
    """Return a check that a backend's time divided by a baseline's is at least a limit, by number of tokens."""
    return lambda name, result: _ratios(name, result, backend, baseline, limits, at_most=False)


def faster_everywhere(backend: str, baseline: str) -> Check:
    """Return a check that a backend is at least as fast as a baseline at every size."""

    def check(name: str, result: BenchResult) -> Iterator[Limit]:
        limits = dict.fromkeys((point.tokens for point in result.points), 1.0)
        return _ratios(name, result, backend, baseline, limits, at_most=True)

    return check


def doublings(limit: float) -> Check:
    """Return a check that our kernel takes at most `limit` times as long for twice as many tokens."""

    def check(name: str, result: BenchResult) -> Iterator[Limit]:
        sizes = {point.tokens: point.timings.get(KERNEL) for point in result.points}
        for tokens, timed in sizes.items():
            if tokens // 2 in sizes:
                half = sizes[tokens // 2]
                seen = timed.median_ms / half.median_ms if timed and half else None
                yield Limit(f"{KERNEL}, {name}, {tokens // 2} to {tokens} tokens", seen, limit)

    return check


def flat(limit: float) -> Check:
    """Return a check that a token after the longest context takes at most `limit` times one after the shortest."""

    def check(name: str, result: BenchResult) -> Iterator[Limit]:
        first, last = result.points[0].tokens, result.points[-1].tokens
        yield Limit(f"{KERNEL}, {name}, a token after {last} over one after {first}", growth(result, KERNEL), limit)

    return check


def _ratios(
    name: str, result: BenchResult, backend: str, baseline: str, limits: dict[int, float], *, at_most: bool
) -> Iterator[Limit]:
    points = {point.tokens: point for point in result.points}
    for tokens, limit in limits.items():
        seen = points[tokens].ratio(backend, baseline) if tokens in points else None
        yield Limit(f"{backend}/{baseline}, {name}, {tokens} {result.labels.tokens}", seen, limit, at_most)
