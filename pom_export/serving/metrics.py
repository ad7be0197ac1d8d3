"""What a server has done and holds, in the text format that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pom_export.runtime.pool.pool import PoolMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
# Seconds; a step of a small model takes a millisecond, one of a large model that waits for a prompt a second.
_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ROWS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# What a pool's metrics count, and what they say that it holds.
_COUNTED: Final = ("tokens", "calls", "rows", "prefix_tokens")
_HELD: Final = ("streams", "most_streams", "waiting", "prefixes", "prefix_bytes")
Labels = Mapping[str, str]


class Histogram:
    """Counts values by the first bound that they do not exceed. One thread observes.

    Args:
        bounds: the bounds, ascending.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class AnswerTimes:
    """Times between answers: an `Observer` of the worker's.

    Attributes:
        first_seconds: time from being given tokens to the first answer, of each stream.
        next_seconds: time between two answers of a stream.
    """

    def __init__(self) -> None:
        self.first_seconds = Histogram(_SECONDS)
        self.next_seconds = Histogram(_SECONDS)

    def first(self, seconds: float) -> None:
        """Record the time to a stream's first answer."""
        self.first_seconds.observe(seconds)

    def next(self, seconds: float) -> None:
        """Record the time between two answers of a stream."""
        self.next_seconds.observe(seconds)


@dataclass(frozen=True)
class ModelMetrics:
    """What a model has done and holds.

    Attributes:
        pool: its pool.
        queue: number of requests that wait for a stream.
        first_seconds: see `AnswerTimes`.
        next_seconds: see there.
    """

    pool: PoolMetrics
    queue: int
    first_seconds: Histogram
    next_seconds: Histogram


def summed(metrics: Mapping[str, ModelMetrics], living: Collection[str]) -> ModelMetrics | None:
    """Return the metrics of several models together; None of none.

    Args:
        metrics: the last metrics of each, by name.
        living: the names of those that still hold what they held; the others only count.
    """
    if not metrics:
        return None
    everything = [each.pool for each in metrics.values()]
    held = [metrics[name].pool for name in metrics if name in living]
    batches: Counter[int] = Counter()
    for pool in everything:
        batches.update(pool.batches)
    totals = {name: sum(getattr(pool, name) for pool in everything) for name in _COUNTED}
    gauges = {name: sum(getattr(pool, name) for pool in held) for name in _HELD}
    return ModelMetrics(
        PoolMetrics(**totals, **gauges, batches=batches, state_bytes=everything[0].state_bytes),
        sum(metrics[name].queue for name in metrics if name in living),
        _added([each.first_seconds for each in metrics.values()]),
        _added([each.next_seconds for each in metrics.values()]),
    )


def _added(histograms: Sequence[Histogram]) -> Histogram:
    total = Histogram(histograms[0].bounds)
    total.counts = [sum(counts) for counts in zip(*(each.counts for each in histograms), strict=True)]
    total.total = sum(each.total for each in histograms)
    return total


class RequestCounts:
    """Counts requests.

    Attributes:
        requests: number of requests, by path and status.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()


def metrics_page(model: ModelMetrics, counts: RequestCounts, running: int, sessions: tuple[int, int]) -> str:
    """Return everything as text.

    Args:
        model: what the model has done.
        counts: requests that were answered.
        running: number of requests that are being answered.
        sessions: number of sessions, and their bytes.
    """
    page, pool = _Page(), model.pool
    page.gauge("pom_streams", "Open streams.", pool.streams)
    page.gauge("pom_streams_limit", "The most streams at a time.", pool.most_streams)
    page.gauge("pom_running_requests", "Requests that are being answered.", running)
    page.gauge("pom_queue_requests", "Requests that wait for a stream.", model.queue)
    page.gauge("pom_waiting_tokens", "Tokens that were given and not read.", pool.waiting)
    page.counter("pom_tokens_total", "Tokens that the model has read.", {}, pool.tokens)
    page.counter("pom_prefix_tokens_total", "Tokens not read since their state was kept.", {}, pool.prefix_tokens)
    page.gauge("pom_prefixes", "Beginnings whose states are kept.", pool.prefixes)
    page.gauge("pom_prefix_bytes", "Size of their states.", pool.prefix_bytes)
    page.gauge("pom_state_bytes", "Size of one stream's state.", pool.state_bytes)
    page.gauge("pom_streams_state_bytes", "Size of the open streams' states.", pool.streams * pool.state_bytes)
    page.gauge("pom_sessions", "Sessions that are kept.", sessions[0])
    page.gauge("pom_session_bytes", "Size of their states.", sessions[1])
    rows = Histogram(_ROWS)
    for batch, calls in sorted(pool.batches.items()):
        rows.observe(batch, calls)
    page.histogram("pom_batch_rows", "Streams that shared a call of the model.", rows)
    page.histogram("pom_first_token_seconds", "Time to a stream's first answer.", model.first_seconds)
    page.histogram("pom_next_token_seconds", "Time between two answers of a stream.", model.next_seconds)
    for (path, status), count in sorted(counts.requests.items()):
        labels = {"path": path, "status": str(status)}
        page.counter("pom_requests_total", "Requests by path and status.", labels, count)
    return page.text


class _Page:
    """Text in Prometheus' format, as it is added to."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._named: set[str] = set()

    @property
    def text(self) -> str:
        return "\n".join(self._lines) + "\n"

    def gauge(self, name: str, says: str, value: float) -> None:
        self._head(name, says, "gauge")
        self._sample(name, {}, value)

    def counter(self, name: str, says: str, labels: Labels, value: float) -> None:
        self._head(name, says, "counter")
        self._sample(name, labels, value)

    def histogram(self, name: str, says: str, histogram: Histogram) -> None:
        self._head(name, says, "histogram")
        for bound, count in _cumulative(histogram):
            self._sample(f"{name}_bucket", {"le": bound}, count)
        self._sample(f"{name}_sum", {}, histogram.total)
        self._sample(f"{name}_count", {}, sum(histogram.counts))

    def _head(self, name: str, says: str, kind: str) -> None:
        if name not in self._named:
            self._named.add(name)
            self._lines += [f"# HELP {name} {says}", f"# TYPE {name} {kind}"]

    def _sample(self, name: str, labels: Labels, value: float) -> None:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        self._lines.append(f"{name}{{{inside}}} {value!r}" if inside else f"{name} {value!r}")


def _cumulative(histogram: Histogram) -> Iterator[tuple[str, int]]:
    total = 0
    for bound, count in zip([*map(repr, histogram.bounds), "+Inf"], histogram.counts, strict=True):
        total += count
        yield bound, total


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
