"""The comparison must fail where it should."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pom_export.parity.comparison import difference
from pom_export.parity.page import render_page
from pom_export.parity.report import CaseResult, Comparison, ParityReport
from pom_export.parity.tolerances import Tolerance

TOLERANCE = Tolerance(1e-3, 1e-6, "for this test")
REFERENCE = np.array([[1.0, -2.0, 0.0]])


def test_within_the_bound_passes_and_beyond_fails() -> None:
    assert difference(REFERENCE + 1.9e-3, REFERENCE, TOLERANCE)
    found = difference(REFERENCE + 2.1e-3, REFERENCE, TOLERANCE)
    assert not found
    assert found.max_abs == pytest.approx(2.1e-3)
    assert found.max_rel == pytest.approx(1.05e-3)


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


def report_of(actual: np.ndarray) -> ParityReport:
    case = CaseResult("a <case>", "x 1x3", difference(actual, REFERENCE, TOLERANCE))
    return ParityReport(
        "m.onnx", "PyTorch", "float32", [Comparison("onnxruntime", "kernel", "y", (case,))], ["trt: no"]
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
    assert "FAILED" in page
