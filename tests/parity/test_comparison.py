"""The comparison must fail where it should."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pom_export.parity.comparison import compare_outputs, difference, share_of_tolerance, spreads
from pom_export.parity.page import render_page
from pom_export.parity.report import CaseResult, Comparison, ParityReport, inconclusive_notes
from pom_export.parity.targets import Spread, Target
from pom_export.parity.tolerances import Bounds, Growth, Tolerance

TOLERANCE = Tolerance(1e-3, 1e-6, "for this test")
REFERENCE = np.array([[1.0, -2.0, 0.0]])


def test_within_the_bound_passes_and_beyond_fails() -> None:
    assert difference(REFERENCE + 1.9e-3, REFERENCE, TOLERANCE)
    found = difference(REFERENCE + 2.1e-3, REFERENCE, TOLERANCE)
    assert not found
    assert found.max_abs == pytest.approx(2.1e-3)
    assert found.max_rel == pytest.approx(1.05e-3)


def test_bounds_grow_with_the_reference_own_error_up_to_a_limit() -> None:
    grows = Growth(6.0, 8.0, 100.0, "for this test")
    small, large, huge = Spread(1e-5, 2e-4), Spread(1e-3, 1e-2), Spread(0.5, 1.0)
    bounds = [difference(REFERENCE, REFERENCE, TOLERANCE, grows, spread).tolerance for spread in (small, large, huge)]
    assert bounds == pytest.approx([2.001e-3, 8e-2, 0.2001])
    near = REFERENCE + np.array([[0.07, 0.0, 0.0]])
    assert not difference(near, REFERENCE, TOLERANCE, grows, large)  # by its root mean square
    assert difference(near, REFERENCE, TOLERANCE, grows, large._replace(rms=1e-2))
    assert [difference(REFERENCE, REFERENCE, TOLERANCE, grows, each).own_error for each in (small, large)] == [0, 1e-2]


@pytest.mark.parametrize(
    "actual",
    [
        np.array([[1.0, -2.0, np.nan]]),
        np.array([[1.0, -2.0, np.inf]]),
        np.array([[1.0, -2.0]]),
        np.array([1.0, -2.0, 0.0]),
    ],
)
def test_nan_infinity_and_other_shapes_fail(actual: np.ndarray) -> None:
    assert not difference(actual, REFERENCE, TOLERANCE)


def test_expected_nan_and_infinity_must_be_met() -> None:
    reference = np.array([1.0, np.nan, np.inf])
    assert difference(reference.copy(), reference, TOLERANCE)
    assert not difference(np.array([1.0, np.nan, -np.inf]), reference, TOLERANCE)
    assert not difference(np.array([1.0, 0.0, np.inf]), reference, TOLERANCE)


@pytest.mark.parametrize("masked", [-1e9, float(np.finfo(np.float32).min), -1e4])
def test_what_is_masked_by_a_number_hides_nothing_of_the_rest(masked: float) -> None:
    reference = np.random.default_rng(0).standard_normal((2, 5, 40))
    reference[:, :, 30:] = masked
    feed: dict[str, np.ndarray] = {}

    def compared(actual: np.ndarray) -> bool:
        return all(map(bool, compare_outputs(feed, Target({"y": reference}), {"y": actual}, TOLERANCE).values()))

    assert compared(reference * (1 + 1e-4))
    assert not compared(np.where(reference > masked, reference + 0.01, reference))
    assert not compared(np.where(reference > masked, reference, reference * 1.01))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        ([0.0, 0.0], "the reference is zero everywhere, in every output and case"),
        ([0.5, 0.5], "the reference of output y is 0.5 everywhere in every case, which proves nothing"),
        ([0.5, np.nan], "the reference of output y holds 2 NaN, where nothing was compared"),
        ([0.5, 0.25], ""),
        ([0.5], ""),
    ],
)
def test_what_a_reference_cannot_show_is_reported(values: list[float], note: str) -> None:
    found = difference(np.array(values), np.array(values), TOLERANCE)
    notes = inconclusive_notes([Comparison("onnxruntime", "kernel", "y", (CaseResult("a", "", found),) * 2)])
    assert [text[: len(note)] for text in notes] == ([note] if note else [])


def report_of(actual: np.ndarray) -> ParityReport:
    case = CaseResult("a <case>", "x 1x3", difference(actual, REFERENCE, TOLERANCE))
    return ParityReport(
        "m.onnx",
        "PyTorch",
        "float32",
        [Comparison("onnxruntime", "kernel", "y", (case,))],
        ["trt: no `engine` <of> it"],
    )


def test_a_report_is_truthy_only_when_something_was_compared_and_passed() -> None:
    assert report_of(REFERENCE)
    assert not report_of(REFERENCE + 1)
    assert not ParityReport("m.onnx", "PyTorch", "float32", [], [])


def test_infinite_differences_stay_json_and_the_page_escapes() -> None:
    report = report_of(REFERENCE * np.nan)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["comparisons"][0]["max_abs"] is None
    page = render_page(report)
    assert "a &lt;case&gt;" in page
    assert "trt: no <code>engine</code> &lt;of&gt; it" in page
    assert "FAILED" in page


@pytest.mark.parametrize(
    ("actual", "reference", "reason"),
    [
        (np.zeros((2, 0)), np.zeros((2, 0)), "no values"),
        (np.full(3, np.nan), np.full(3, np.nan), "no finite value"),
        (np.full(3, np.inf), np.full(3, np.inf), "no finite value"),
        (np.zeros(2), np.zeros(3), r"\[2\], the reference's \[3\]"),
        (np.array([1.0, np.nan]), np.array([1.0, 1.0]), "on one side alone"),
    ],
)
def test_a_comparison_of_nothing_has_not_passed(actual: np.ndarray, reference: np.ndarray, reason: str) -> None:
    found = difference(actual, reference, TOLERANCE)
    assert not found
    assert re.search(reason, found.reason)
    assert share_of_tolerance(found) == np.inf


def test_numbers_that_count_are_the_same_or_wrong() -> None:
    length = np.array([1_000_003])
    assert difference(length, length, TOLERANCE)
    assert not difference(length + 1, length, TOLERANCE)


def test_an_output_that_is_missing_fails() -> None:
    assert (
        compare_outputs({}, Target({"y": REFERENCE, "z": REFERENCE}), {"y": REFERENCE}, TOLERANCE)["z"].reason
        == "it is missing"
    )


def state(sums: np.ndarray) -> np.ndarray:
    """Return sums (L, C) in float64 as pairs of floats (1, L, 2, C)."""
    first = sums.astype(np.float32).astype(np.float64)
    return np.stack([first, sums - first], axis=1)[None]


RANDOM = np.random.default_rng(0)
# Two mixers, one of which sums numbers a thousand times as large.
PAST = RANDOM.standard_normal((2, 8)) * np.array([[1e5], [1e2]])
ADDED = RANDOM.standard_normal((2, 8)) * np.array([[1.0], [1e-3]])
FLOAT32 = Tolerance(1e-5, 1e-7, "for this test")


def compared(actual: np.ndarray) -> bool:
    feed, reference = {"past_state": state(PAST)}, Target({"present_state": state(PAST + ADDED)})
    return bool(compare_outputs(feed, reference, {"present_state": actual}, FLOAT32)["present_state"])


def test_the_two_floats_of_a_state_are_one_number() -> None:
    expected = state(PAST + ADDED)
    assert compared(expected)
    # Another split of the same sums, and sums as float32 arithmetic adds them.
    moved = np.spacing(expected[:, :, 0].astype(np.float32))
    assert compared(expected + np.stack([moved, -moved], axis=2))
    assert compared(state(PAST + ADDED.astype(np.float32) * np.float32(1 + 1e-6)))


@pytest.mark.parametrize("mixer", [0, 1])
def test_each_mixer_of_a_state_is_compared_on_its_own_scale(mixer: int) -> None:
    without = state(PAST + ADDED)
    without[:, mixer, 1] = 0
    assert not compared(without)
    off = (PAST + ADDED).copy()
    off[mixer] += 1e-3 * np.abs(ADDED[mixer]).max()
    assert not compared(state(off))


def test_a_comparison_over_no_cases_has_not_passed() -> None:
    assert not Comparison("onnxruntime", "kernel", "y", ())


BOUNDS = Bounds(2.0, 4.0, 1e-6, 1.0, "for this test")
COARSE = Tolerance(0.1, 0.0, "for this test")
NOISE = 0.01 * RANDOM.standard_normal(1000)
SIGNAL = 5 * RANDOM.standard_normal(1000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (0.0, ""),
        (0.03, r"rms 3\.\d+e-02 is 1\.\d+ times its bound \S+"),
        (np.eye(1, 1000)[0] * 0.3, r"max_abs \S+ is \S+ times its bound \S+"),
    ],
    ids=["none", "a small one everywhere", "a large one in one place"],
)
def test_rounding_bounds_the_distribution_of_errors(fault: object, message: str) -> None:
    """Both faults are within a tenth of the largest output."""
    (spread,) = spreads({}, {"y": SIGNAL + NOISE}, {"y": SIGNAL})["y"]
    assert spread == Spread(pytest.approx(NOISE.std(), rel=0.05), pytest.approx(np.abs(NOISE).max()))
    found = difference(SIGNAL + NOISE[::-1] + fault, SIGNAL, COARSE, BOUNDS, spread)
    assert re.fullmatch(message, found.broken)
    assert bool(found) == (not message)
    assert difference(SIGNAL + NOISE[::-1] + fault, SIGNAL, COARSE)


def test_each_mixer_of_a_state_has_a_spread_of_its_own() -> None:
    feed, reference = {"past_state": state(PAST)}, {"present_state": state(PAST + ADDED)}
    rounded = {"present_state": state(PAST + ADDED * np.array([[1.001], [1.01]]))}
    first, second = spreads(feed, rounded, reference)["present_state"]
    assert first.largest == pytest.approx(1e-3 * np.abs(ADDED[0]).max(), rel=1e-6)
    assert second.largest == pytest.approx(1e-2 * np.abs(ADDED[1]).max(), rel=1e-6)
