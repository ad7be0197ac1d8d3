"""The scales of activations: magnitudes counted over many arrays, thresholds, and inputs that give none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from pom_export.errors import InputError
from pom_export.quantization.activations import METHODS, Magnitudes, activation_scales, magnitudes

RANDOM = np.random.default_rng(0)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = """
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[a, 4] x) => (float[a, 4] y) { inner = Sqrt(x) y = Add(inner, x) }"""
    onnx.save(onnx.parser.parse_model(graph), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_magnitudes_are_counted_whatever_the_order_of_the_arrays() -> None:
    arrays = [RANDOM.standard_normal(1000).astype(np.float32) * factor for factor in (0.01, 5, 1, 40)]
    one, other = Magnitudes(), Magnitudes()
    for array in arrays:
        one.add(array)
    other.add(np.concatenate(arrays))
    assert one.counts.sum() == other.counts.sum() == 4000
    assert one.largest == other.largest == np.abs(np.concatenate(arrays)).max()
    for method in METHODS:
        assert one.threshold(method, "int8") == pytest.approx(other.threshold(method, "int8"), rel=0.05)


def test_zeros_come_before_other_magnitudes_without_harm() -> None:
    seen = Magnitudes()
    seen.add(np.zeros(10, np.float32))
    seen.add(np.ones(10, np.float32))
    assert seen.counts.sum() == 20
    assert seen.threshold("maximum", "int8") == 1


def test_each_method_cuts_off_what_it_says() -> None:
    seen = Magnitudes()
    values = RANDOM.standard_normal(100_000).astype(np.float32)
    values[0] = 100
    seen.add(values)
    assert seen.threshold("maximum", "int8") == 100
    assert seen.threshold("percentile", "int8") == pytest.approx(np.quantile(np.abs(values), 0.9999), rel=0.01)

    def loss(threshold: float) -> float:
        step = threshold / 127
        return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).sum())

    chosen = seen.threshold("squares", "int8")
    assert loss(chosen) <= 1.02 * min(loss(threshold) for threshold in np.geomspace(1, 100, 200))
    # Floats have steps as fine for small values, and little to gain from cutting off.
    assert seen.threshold("squares", "fp8") > chosen


def test_scales_divide_by_the_largest_value_of_the_type(model: Path) -> None:
    feeds = [{"x": np.full((3, 4), value, np.float32)} for value in (4, 16)]
    scales = activation_scales(model, ["inner", "x"], iter(feeds), "int8", "maximum")
    assert scales == pytest.approx({"inner": 4 / 127, "x": 16 / 127})
    # Larger values than were seen are not cut off at once.
    assert activation_scales(model, ["inner"], feeds, "fp8", "maximum") == pytest.approx({"inner": 8 * 4 / 448})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, -1.0], r"inner, which a product multiplies, becomes nan on input 2 for calibration"),
        ([1.0, np.inf], r"inner, which a product multiplies, becomes inf on input 2"),
        ([], r"no inputs for calibration"),
    ],
)
def test_values_without_a_scale_are_refused_by_name(model: Path, values: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        magnitudes(model, ["inner"], [{"x": np.full((1, 4), value, np.float32)} for value in values])


def test_what_is_always_0_has_no_scale(model: Path) -> None:
    feeds = [{"x": np.zeros((1, 4), np.float32)}]
    assert activation_scales(model, ["inner", "x"], feeds, "int8") == {}


def test_an_input_that_the_model_refuses_is_named(model: Path) -> None:
    with pytest.raises(InputError, match="ONNX Runtime fails on input 1 for calibration"):
        magnitudes(model, ["inner"], [{"x": np.zeros((1, 5), np.float32)}])
