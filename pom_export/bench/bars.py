"""What this project promises of its speed: each a ratio inside one run, with a limit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from pom_export.bench.options import ATTENTION, KERNEL, MATMUL, PLAIN, TORCH_COMPILE
from pom_export.bench.results import BenchResult, Point
from pom_export.bench.stream.results import StreamResult

# Names of the runs that the bars are about.
MEAN: Final = "layer-none"
CAUSAL: Final = "layer-causal"
HEADS: Final = "layer-8-heads"
LONG: Final = "long-causal"
STREAM: Final = "stream"
IMAGE: Final = "image"

_FROM_1024 = (1024, 4096, 16384)
_OVER_FLOOR, _HEADS_OVER_FLOOR = 1.08, 0.6
_PLAIN_OVER_KERNEL = {4096: 5.0, 16384: 15.0}
_DOUBLING = 2.1
_FLAT = 1.05
_IMAGE_ATTENTION_OVER_KERNEL = {4096: 2.0}


@dataclass(frozen=True)
class Bar:
    """One promise.

    Attributes:
        what: the ratio, and where.
        seen: its value; None where it was not measured.
        limit: what it is held to.
        at_most: whether the limit is the largest value that passes, else the smallest.
    """

    what: str
    seen: float | None
    limit: float
    at_most: bool = True

    @property
    def passed(self) -> bool:
        """Whether it was measured and holds."""
        if self.seen is None:
            return False
        return self.seen <= self.limit if self.at_most else self.seen >= self.limit

    def __str__(self) -> str:
        seen = "not measured" if self.seen is None else f"{self.seen:.2f}"
        verdict = "pass" if self.passed else "FAIL" if self.seen is not None else "-"
        return f"{verdict:<5} {seen:>12}  {'at most' if self.at_most else 'at least'} {self.limit:<5g} {self.what}"


def check_bars(results: Mapping[str, BenchResult | StreamResult]) -> list[Bar]:
    """Return the bars of the runs that there are, by the names above."""
    layers = {name: result for name, result in results.items() if isinstance(result, BenchResult)}
    streams = {name: result for name, result in results.items() if isinstance(result, StreamResult)}
    checks: tuple[tuple[str, Callable[[str, BenchResult], Iterator[Bar]]], ...] = (
        (MEAN, lambda name, result: _over_floor(name, result, _OVER_FLOOR)),
        (CAUSAL, lambda name, result: _over_floor(name, result, _OVER_FLOOR)),
        (HEADS, lambda name, result: _over_floor(name, result, _HEADS_OVER_FLOOR)),
        (CAUSAL, _plain_over_kernel),
        (MEAN, _over_compiled),
        (CAUSAL, _over_compiled),
        (HEADS, _over_compiled),
        (LONG, _doublings),
        (IMAGE, _attention_over_kernel),
    )
    bars = [bar for name, check in checks if name in layers for bar in check(name, layers[name])]
    return bars + [bar for name, result in streams.items() for bar in _flat(name, result)]


def _over_floor(name: str, result: BenchResult, limit: float) -> Iterator[Bar]:
    for tokens in _FROM_1024:
        yield Bar(f"{KERNEL}/{MATMUL}, {name}, {tokens} tokens", _ratio(result, tokens, KERNEL, MATMUL), limit)


def _plain_over_kernel(name: str, result: BenchResult) -> Iterator[Bar]:
    for tokens, limit in _PLAIN_OVER_KERNEL.items():
        seen = _ratio(result, tokens, PLAIN, KERNEL)
        yield Bar(f"{PLAIN}/{KERNEL}, {name}, {tokens} tokens", seen, limit, at_most=False)


def _attention_over_kernel(name: str, result: BenchResult) -> Iterator[Bar]:
    for tokens, limit in _IMAGE_ATTENTION_OVER_KERNEL.items():
        seen = _ratio(result, tokens, ATTENTION, KERNEL)
        yield Bar(f"{ATTENTION}/{KERNEL}, {name}, {tokens} tokens", seen, limit, at_most=False)


def _over_compiled(name: str, result: BenchResult) -> Iterator[Bar]:
    for point in result.points:
        seen = point.ratio(KERNEL, TORCH_COMPILE)
        yield Bar(f"{KERNEL}/{TORCH_COMPILE}, {name}, {point.tokens} tokens", seen, 1.0)


def _doublings(name: str, result: BenchResult) -> Iterator[Bar]:
    timed = {point.tokens: point.timings[KERNEL].median_ms for point in result.points if KERNEL in point.timings}
    for point in result.points:
        half = point.tokens // 2
        if half in {other.tokens for other in result.points}:
            seen = timed[point.tokens] / timed[half] if {half, point.tokens} <= timed.keys() else None
            yield Bar(f"{KERNEL}, {name}, {half} to {point.tokens} tokens", seen, _DOUBLING)


def _flat(name: str, result: StreamResult) -> Iterator[Bar]:
    first, last = result.points[0].tokens, result.points[-1].tokens
    yield Bar(f"{KERNEL}, {name}, a token after {last} over one after {first}", result.growth(KERNEL), _FLAT)


def _ratio(result: BenchResult, tokens: int, backend: str, to: str) -> float | None:
    found: list[Point] = [point for point in result.points if point.tokens == tokens]
    return found[0].ratio(backend, to) if found else None
