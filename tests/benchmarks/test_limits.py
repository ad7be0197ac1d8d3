"""The project's promises about its speed, checked on numbers that were not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.growth import growth
from benchmarks.limits import Limit, faster_everywhere, flat
from benchmarks.project import check_limits, project_runs
from pom_export.bench.results import BenchResult, Point, Summary

pytestmark = pytest.mark.slow


def timed(milliseconds: float) -> Summary:
    return Summary(*[milliseconds] * 5, 5)


def some_run(result: BenchResult, **times: dict[int, float]) -> BenchResult:
    sizes = sorted({tokens for values in times.values() for tokens in values})
    points = [
        Point(1, n, {name.replace("_", "-"): timed(values[n]) for name, values in times.items() if n in values})
        for n in sizes
    ]
    return replace(result, points=points)


def verdicts(name: str, result: BenchResult) -> dict[str, bool]:
    return {limit.what: limit.passed for limit in check_limits(name, project_runs()[name].checks, result)}


def test_ratios_to_the_floor_and_to_the_plain_export(layer_result: BenchResult) -> None:
    kernel, matmul = {1024: 1.0, 4096: 1.2, 16384: 0.5}, {1024: 1.0, 4096: 1.0, 16384: 1.0}
    run = some_run(layer_result, kernel=kernel, matmul=matmul, plain={4096: 7.0, 16384: 7.0})
    causal, heads = verdicts("layer-causal", run), verdicts("layer-8-heads", run)
    assert causal["kernel/matmul, layer-causal, 1024 tokens"]
    assert not causal["kernel/matmul, layer-causal, 4096 tokens"]
    assert not heads["kernel/matmul, layer-8-heads, 1024 tokens"]
    assert heads["kernel/matmul, layer-8-heads, 16384 tokens"]
    assert causal["plain/kernel, layer-causal, 4096 tokens"]
    assert not causal["plain/kernel, layer-causal, 16384 tokens"]


def test_attention_is_slower_on_large_images(layer_result: BenchResult) -> None:
    run = some_run(layer_result, kernel={256: 1.0, 4096: 1.0}, attention={256: 1.0, 4096: 2.5})
    assert verdicts("image", run) == {"attention/kernel, image, 4096 tokens": True}


def test_streams_of_a_pool_are_faster_than_others(serving_result: BenchResult) -> None:
    times = {"pool": {8: 1.0, 64: 1.0}, "sessions": {8: 1.9, 64: 4.0}, "attention_8k": {8: 1.0, 64: 5.5}}
    assert verdicts("serving", some_run(serving_result, **times)) == {
        "sessions/pool, serving, 8 streams": False,
        "sessions/pool, serving, 64 streams": True,
        "attention-8k/pool, serving, 64 streams": True,
    }


def test_the_compiler_is_beaten_at_every_size(layer_result: BenchResult) -> None:
    run = some_run(layer_result, kernel={256: 1.0, 512: 1.0}, torch_compile={256: 2.0, 512: 0.5})
    found = verdicts("layer-none", run)
    assert found["kernel/torch-compile, layer-none, 256 tokens"]
    assert not found["kernel/torch-compile, layer-none, 512 tokens"]
    assert [limit.limit for limit in faster_everywhere("kernel", "torch-compile")("", run)] == [1.0, 1.0]


def test_doublings(layer_result: BenchResult) -> None:
    run = some_run(layer_result, kernel={8192: 1.0, 16384: 2.0, 32768: 5.0})
    assert list(verdicts("long-causal", run).values()) == [True, False]


@pytest.mark.parametrize(("last", "expected"), [(8.0, 4.0), (None, None)])
def test_growth_is_the_last_size_by_the_first(
    layer_result: BenchResult, last: float | None, expected: float | None
) -> None:
    if last is None:
        layer_result.points[1].timings = {}
    assert growth(layer_result, "kernel") == expected
    assert growth(layer_result, "plain") is None


@pytest.mark.parametrize(("last", "passed"), [(1.05, True), (1.06, False), (0.9, True), (None, False)])
def test_a_stream_is_flat(stream_result: BenchResult, last: float | None, passed: bool) -> None:
    run = some_run(stream_result, kernel={1: 1.0, 64: 9.0})
    run.points.append(Point(1, 1024, {} if last is None else {"kernel": timed(last)}))
    (limit,) = flat(1.05)("stream", run)
    assert limit.what == "kernel, stream, a token after 1024 over one after 1"
    assert (limit.seen, limit.limit, limit.passed) == (last, 1.05, passed)
    assert verdicts("stream", run) == {limit.what: passed}


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (Limit("a/b", 1.05, 1.08), "pass          1.05  at most 1.08  a/b"),
        (Limit("a/b", 4.0, 5, at_most=False), "FAIL          4.00  at least 5     a/b"),
        (Limit("a/b", None, 5), "-     not measured  at most 5     a/b"),
    ],
)
def test_a_limit_says_what_was_seen(limit: Limit, text: str) -> None:
    assert str(limit) == text
    assert limit.passed is (text.startswith("pass"))
