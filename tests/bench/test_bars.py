"""What the project promises of its speed, checked on numbers that nobody measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pom_export.bench.bars import CAUSAL, HEADS, LONG, MEAN, STREAM, Bar, check_bars
from pom_export.bench.results import BenchResult, Point
from pom_export.bench.statistics import Summary
from pom_export.bench.stream.results import StreamPoint, StreamResult


def timed(milliseconds: float) -> Summary:
    return Summary(milliseconds, milliseconds, milliseconds, milliseconds, 5)


def some_run(result: BenchResult, **times: dict[int, float]) -> BenchResult:
    sizes = sorted({tokens for values in times.values() for tokens in values})
    points = [
        Point(1, n, {name.replace("_", "-"): timed(values[n]) for name, values in times.items() if n in values})
        for n in sizes
    ]
    return replace(result, points=points)


def verdicts(bars: list[Bar]) -> dict[str, bool]:
    return {bar.what: bar.passed for bar in bars}


def test_ratios_to_the_floor_and_to_the_plain_export(result: BenchResult) -> None:
    kernel, matmul = {1024: 1.0, 4096: 1.2, 16384: 0.5}, {1024: 1.0, 4096: 1.0, 16384: 1.0}
    run = some_run(result, kernel=kernel, matmul=matmul, plain={4096: 7.0, 16384: 7.0})
    found = verdicts(check_bars({CAUSAL: run, HEADS: run}))
    assert found["kernel/matmul, layer-causal, 1024 tokens"]
    assert not found["kernel/matmul, layer-causal, 4096 tokens"]
    assert not found["kernel/matmul, layer-8-heads, 1024 tokens"]
    assert found["kernel/matmul, layer-8-heads, 16384 tokens"]
    assert found["plain/kernel, layer-causal, 4096 tokens"]
    assert not found["plain/kernel, layer-causal, 16384 tokens"]


def test_the_compiler_is_beaten_at_every_size(result: BenchResult) -> None:
    run = some_run(result, kernel={256: 1.0, 512: 1.0}, torch_compile={256: 2.0, 512: 0.5})
    found = verdicts(check_bars({MEAN: run}))
    assert found["kernel/torch-compile, layer-none, 256 tokens"]
    assert not found["kernel/torch-compile, layer-none, 512 tokens"]


def test_doublings(result: BenchResult) -> None:
    run = some_run(result, kernel={8192: 1.0, 16384: 2.0, 32768: 5.0})
    assert list(verdicts(check_bars({LONG: run})).values()) == [True, False]


@pytest.mark.parametrize(("last", "passed"), [(1.05, True), (1.06, False), (0.9, True), (None, False)])
def test_a_stream_is_flat(result: BenchResult, last: float | None, passed: bool) -> None:
    points = [
        StreamPoint(1, {"kernel": timed(1.0)}),
        StreamPoint(64, {"kernel": timed(9.0)}),
        StreamPoint(1024, {} if last is None else {"kernel": timed(last)}),
    ]
    stream = StreamResult("a model", ["kernel"], {}, points, result.machine, result.options)
    (bar,) = check_bars({STREAM: stream})
    assert bar.what == "kernel, stream, a token after 1024 over one after 1"
    assert (bar.seen, bar.limit, bar.passed) == (last, 1.05, passed)


@pytest.mark.parametrize(
    ("bar", "text"),
    [
        (Bar("a/b", 1.05, 1.08), "pass          1.05  at most 1.08  a/b"),
        (Bar("a/b", 4.0, 5, at_most=False), "FAIL          4.00  at least 5     a/b"),
        (Bar("a/b", None, 5), "-     not measured  at most 5     a/b"),
    ],
)
def test_a_bar_says_what_was_seen(bar: Bar, text: str) -> None:
    assert str(bar) == text
    assert bar.passed is (text.startswith("pass"))
