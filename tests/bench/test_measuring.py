"""Backends must be seen to agree, on numbers and on all outputs, and are timed in turns."""

from __future__ import annotations

import numpy as np
import pytest

from pom_export.bench.measuring import compare, time_interleaved
from pom_export.bench.options import BenchOptions
from pom_export.errors import ParityError

GOOD = np.array([[1.0, -2.0]], np.float32)


def test_the_largest_difference_is_reported() -> None:
    assert compare("a", [GOOD, GOOD + 1e-3], "b", [GOOD, GOOD]) == pytest.approx(5e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("outputs", "expected", "message"),
    [
        ([GOOD + 0.1], [GOOD], "differ by 0.05 of the largest"),
        ([GOOD.T], [GOOD], r"its shape is \[2, 1\]"),
        ([], [], "a gives 0 outputs, b 0"),
        ([GOOD], [GOOD, GOOD], "a gives 1 outputs, b 2"),
        ([GOOD[:0]], [GOOD[:0]], "it has no values"),
        ([GOOD * np.nan], [GOOD * np.nan], "no finite value"),
        ([GOOD * np.inf], [GOOD * np.inf], "no finite value"),
    ],
)
def test_what_does_not_agree_or_cannot_show_it_is_not_timed(
    outputs: list[np.ndarray], expected: list[np.ndarray], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        compare("a", outputs, "b", expected)


def test_runs_take_turns() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = time_interleaved(functions, BenchOptions(warmup=1, repeats=3))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_settled_run_follows_one_of_the_same_backend() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(functions, BenchOptions(warmup=0, repeats=2), settled=True)
    assert "".join(calls) == "aabb" + "bbaa"
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_a_turn_has_as_many_runs_as_fit() -> None:
    calls: list[str] = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = time_interleaved(functions, BenchOptions(warmup=0, repeats=1), settled=True, turn_s=0.05)
    first, second = calls.count("a"), calls.count("b")
    assert calls == ["a"] * first + ["b"] * second
    assert (len(times["a"]), len(times["b"])) == (first - 1, second - 1)
    assert min(first, second) > 2


def test_without_a_budget_there_are_five_rounds_and_at_most_fifty() -> None:
    assert len(time_interleaved({"a": lambda: None}, BenchOptions(budget_s=0.0))["a"]) == 5
    assert len(time_interleaved({"a": lambda: None}, BenchOptions(budget_s=1e9))["a"]) == 50
