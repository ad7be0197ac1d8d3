"""What a model's quality is, against numbers computed by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.interface import TensorSpec
from pom_export.quantization.data import Data
from pom_export.quantization.quality import Judge

IDS = np.array([[1, 0, 2, 2], [0, 0, 1, 2]])


def model_of(*axes: Any) -> ExportedModel:
    outputs = [TensorSpec("out", np.dtype(np.float32), axes)]
    return ExportedModel(
        Path("m.onnx"), [TensorSpec("input_ids", np.dtype(np.int64), ("batch", "tokens"))], outputs, {}, 20, []
    )


def judged(expected: Any, made: Any, *, calls: Any = None, labels: Any = (), **data: Any) -> Any:
    calls = [{"input_ids": IDS}] if calls is None else calls
    judge = Judge(
        model_of("batch", "tokens", 3), lambda _: {"out": expected}, Data(calls, calls, "x", **data), calls, labels
    )
    return judge.quality(lambda _: {"out": made})


def test_bits_a_byte() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    other = logits[..., ::-1].copy()
    found = judged(logits, other, is_text=True, bytes_per_token=2.0)
    chances = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True)
    bits = [-math.log2(chances[row, place, IDS[row, place + 1]]) for row in range(2) for place in range(3)]
    assert found.measure == "bits a byte"
    assert found.original == pytest.approx(np.mean(bits) / 2)
    assert found.loss == pytest.approx(found.quantized / found.original - 1)
    assert found.agreement == (logits.argmax(-1) == other.argmax(-1)).mean()


def test_accuracy_falls() -> None:
    expected = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    made = np.eye(3, dtype=np.float32)[[0, 1, 1, 2]]
    found = judged(expected, made, calls=[{"x": expected}], labels=[np.array([0, 1, 2, 0])])
    assert (found.measure, found.original, found.quantized) == ("accuracy", 0.75, 0.5)
    assert found.loss == pytest.approx(1 / 3)
    assert found.agreement == 0.75


def test_errors_and_noise_of_images() -> None:
    expected = np.random.default_rng(0).uniform(-1, 1, (2, 1, 4, 4)).astype(np.float32)
    found = judged(expected, expected + np.float32(0.01), calls=[{"x": expected}])
    assert found.error == pytest.approx(0.01 / np.abs(expected).max(), rel=1e-4)
    assert found.rms_error == pytest.approx(0.01 / np.sqrt((expected**2).mean()), rel=1e-4)
    assert found.psnr == pytest.approx(20 * math.log10((expected.max() - expected.min()) / 0.01), rel=1e-4)
    assert (found.measure, found.loss, found.agreement) == ("", None, None)


def test_the_same_outputs_cost_nothing() -> None:
    expected = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    found = judged(expected, expected, calls=[{"x": expected}])
    assert (found.error, found.rms_error, found.agreement) == (0, 0, 1)


def test_broken_outputs_are_infinitely_bad() -> None:
    logits = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    found = judged(logits, np.full_like(logits, np.nan), is_text=True)
    assert math.isinf(found.error)
    assert math.isinf(found.loss)


@pytest.mark.parametrize(("value", "message"), [(0.0, "is 0 everywhere"), (np.nan, "NaN or infinity")])
def test_an_original_that_says_nothing_is_refused(value: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        judged(np.full((2, 3), value, np.float32), None, calls=[{"x": IDS}])
