"""The sampler against a plain loop in float64, and what it refuses."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.images import sample_images

CLASSES = 4
NOISE = np.random.default_rng(0).standard_normal((3, 2, 4, 4))
LABELS = np.array([0, 3, 1])


def predict(z: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A double of a model, curved in the image, the time and the label."""
    shift = (t + y)[:, None, None, None].astype(z.dtype)
    return np.sin(z + shift) + z * t[:, None, None, None].astype(z.dtype)


def velocity(z: np.ndarray, t: float, y: int) -> np.ndarray:
    return (predict(z[None], np.array([t]), np.array([y]))[0] - z) / max(1 - t, 0.05)


def by_a_plain_loop(steps: int, w: float, low: float, high: float) -> np.ndarray:
    """Integrate each image by itself, with both predictions at every time, as the authors write it."""

    def guided(z: np.ndarray, t: float, y: int) -> np.ndarray:
        weight = w if t < high and (low == 0 or t > low) else 1.0
        unconditional = velocity(z, t, CLASSES)
        return unconditional + weight * (velocity(z, t, y) - unconditional)

    images = []
    for z, y in zip(NOISE, LABELS, strict=True):
        for step in range(steps):
            t, after = step / steps, (step + 1) / steps
            first = guided(z, t, y)
            last_step = step == steps - 1
            second = first if last_step else guided(z + first / steps, after, y)
            z = z + (first + second) / 2 / steps
        images.append(z)
    return np.stack(images)


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize(
    ("w", "low", "high"), [(1.0, 0, 1), (2.9, 0, 1), (2.9, 0.1, 0.9), (0.0, 0.5, 1), (3.0, 0, 0.3)]
)
def test_follows_the_authors_steps(steps: int, w: float, low: float, high: float) -> None:
    images = sample_images(predict, NOISE, LABELS, num_classes=CLASSES, steps=steps, guidance=w, interval=(low, high))
    np.testing.assert_allclose(images, by_a_plain_loop(steps, w, low, high), rtol=1e-9, atol=1e-9)


def test_calls_the_model_no_more_than_needed() -> None:
    rows: list[int] = []

    def counting(z: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        assert (t.dtype, y.dtype) == (z.dtype, np.int64)
        rows.append(len(z))
        return predict(z, t, y)

    sample_images(counting, NOISE, LABELS, num_classes=CLASSES, steps=4)
    assert rows == [3] * 7
    rows.clear()
    sample_images(counting, NOISE, LABELS, num_classes=CLASSES, steps=4, guidance=2.0, interval=(0.3, 0.6))
    assert rows.count(6) == 2  # at 0.5, as the end of a step and as the start of one
    assert set(rows) == {3, 6}


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_model_in_half_precision_gets_its_type_and_steps_stay_in_float32(dtype: Any) -> None:
    seen = set()

    def half(z: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.update((z.dtype, t.dtype))
        return predict(z.astype(np.float32), t.astype(np.float32), y).astype(dtype)

    images = sample_images(half, NOISE.astype(dtype), LABELS, num_classes=CLASSES, steps=20)
    assert seen == {np.dtype(dtype)}
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, by_a_plain_loop(20, 1.0, 0, 1), atol=0.1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"noise": NOISE[0]}, r"noise is float64\[2, 4, 4\]"),
        ({"noise": NOISE.astype(int)}, "noise is int64"),
        ({"labels": LABELS[:2]}, r"labels are int64\[2\] for 3 images"),
        ({"labels": LABELS / 2}, "labels are float64"),
        ({"labels": np.array([0, 5, 1])}, "label 5 is not 0 to 4"),
        ({"labels": np.array([0, -1, 1])}, "label -1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"interval": (0.5, 0.5)}, "must begin before it ends"),
        ({"predict": lambda z, *_: z[:1]}, "the model returned"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], message: str) -> None:
    arguments = {"predict": predict, "noise": NOISE, "labels": LABELS, "num_classes": CLASSES, **changed}
    with pytest.raises(InputError, match=message):
        sample_images(**arguments)
