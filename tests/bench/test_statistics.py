"""Medians, quartiles, ratios, and whose turn it is."""

from __future__ import annotations

import pytest

from pom_export.bench.measuring import time_interleaved
from pom_export.bench.options import BenchOptions
from pom_export.bench.results import Summary, ratios, summarise


@pytest.mark.parametrize(
    ("seconds", "lower", "median", "upper"),
    [([0.001], 1, 1, 1), ([0.002, 0.001], 1.25, 1.5, 1.75), ([0.001, 0.004, 0.002], 1.5, 2, 3)],
)
def test_quartiles_lie_between_values(seconds: list[float], lower: float, median: float, upper: float) -> None:
    summary = summarise(seconds)
    assert (summary.lower_ms, summary.median_ms, summary.upper_ms) == pytest.approx((lower, median, upper))


def test_a_summary_is_in_milliseconds_and_in_no_order() -> None:
    assert summarise([0.004, 0.001, 0.002, 0.003, 0.005]) == Summary(3.0, 2.0, 4.0, 1.0, 5)


def test_ratios_are_those_of_the_medians() -> None:
    timings = {"matmul": summarise([0.002]), "kernel": summarise([0.003])}
    assert ratios(timings, "matmul") == {"kernel": pytest.approx(1.5)}
    assert ratios(timings, "plain") == {}


def test_runs_take_turns() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = time_interleaved(functions, BenchOptions(warmup=1, repeats=3))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_settled_run_follows_one_of_its_own() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(functions, BenchOptions(warmup=0, repeats=2), settled=True)
    assert "".join(calls) == "aabb" + "bbaa"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_without_a_budget_there_are_five_rounds_and_at_most_fifty() -> None:
    assert len(time_interleaved({"a": lambda: None}, BenchOptions(budget_s=0.0))["a"]) == 5
    assert len(time_interleaved({"a": lambda: None}, BenchOptions(budget_s=1e9))["a"]) == 50
