"""Sample images step by step, from noise to the model's estimate. Needs only numpy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError

Array = npt.NDArray[Any]
Predict = Callable[[Array, Array, Array], Array]
"""Predicts clean images (B, C, H, W) from noisy ones of that shape, times (B) and labels (B) int64."""

_LEAST_REST = 0.05  # the smallest remaining time that a velocity is divided by
_IMAGE_AXES = 4


def sample_images(
    predict: Predict,
    noise: Array,
    labels: Array,
    *,
    num_classes: int,
    steps: int = 50,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Array:
    """Return images of the given labels.

    The time runs from 0 (noise) to 1 in equal steps: Heun's, which evaluate the velocity at both ends, except for the
    last, which is Euler's. An image moves with the velocity v = (prediction - z) / max(1 - t, 0.05). With guidance, v =
    v_u + w (v_c - v_u), where v_c is the velocity for the label and v_u that for no class.

    Args:
        predict: the model; for an exported one, `lambda x, t, y: session.run(None, {"x": x, "t": t, "y": y})[0]`. With
            guidance, it is called with 2 B rows: the images with their labels, then with no class.
        noise: (B, C, H, W), normally distributed, of the model's type. Steps are computed at least in float32.
        labels: (B) integers below `num_classes`, or `num_classes` for no class.
        num_classes: number of labels that the model knows.
        steps: number of steps.
        guidance: w; 1 means no guidance, and half as many rows.
        interval: the times between which guidance is applied, excluding the ends, but including 0 if it starts there.

    Returns:
        (B, C, H, W) in float32, or float64 for noise of that type. The pixels have the range that the model was trained
        on, usually -1 to 1.

    Raises:
        InputError: a shape, a label or a number does not fit.
    """
    labels = np.asarray(labels)
    _check(noise, labels, num_classes, steps, guidance, interval)
    field = _Field(predict, noise.dtype, labels.astype(np.int64), num_classes, float(guidance), interval)
    z = noise.astype(np.result_type(noise.dtype, np.float32))
    # Python floats, since NumPy's would convert everything to float64.
    for start, stop in pairwise(np.linspace(0, 1, steps + 1).tolist()):
        velocity = field(z, start)
        if stop < 1:
            velocity = (velocity + field(z + (stop - start) * velocity, stop)) / 2
        z = z + (stop - start) * velocity
    return z


@dataclass(frozen=True)
class _Field:
    """The velocity of images, as a function of the images and the time."""

    predict: Predict
    dtype: np.dtype[Any]
    labels: Array
    num_classes: int
    guidance: float
    interval: tuple[float, float]

    def __call__(self, z: Array, t: float) -> Array:
        low, high = self.interval
        guided = self.guidance != 1 and (low == 0 or t > low) and t < high
        if not guided:
            return self._velocity(z, t, self.labels)
        no_class = np.full_like(self.labels, self.num_classes)
        both = self._velocity(np.concatenate([z, z]), t, np.concatenate([self.labels, no_class]))
        conditional, unconditional = np.split(both, 2)
        return unconditional + self.guidance * (conditional - unconditional)

    def _velocity(self, z: Array, t: float, labels: Array) -> Array:
        predicted = self.predict(z.astype(self.dtype), np.full(len(z), t, self.dtype), labels)
        if predicted.shape != z.shape:
            raise InputError(
                f"the model returned {predicted.shape} for images {z.shape}", "It must return images of the same shape"
            )
        velocity: Array = (predicted.astype(z.dtype) - z) / max(1 - t, _LEAST_REST)
        return velocity


def _check(
    noise: Array, labels: Array, num_classes: int, steps: int, guidance: float, interval: tuple[float, float]
) -> None:
    if noise.ndim != _IMAGE_AXES or noise.dtype.kind in "biuc":
        raise InputError(
            f"noise is {noise.dtype}{list(noise.shape)}", "Give floating-point images (batch, channels, height, width)"
        )
    if labels.shape != noise.shape[:1] or labels.dtype.kind not in "iu":
        raise InputError(
            f"labels are {labels.dtype}{list(labels.shape)} for {len(noise)} images", "Give one integer per image"
        )
    outside = labels[(labels < 0) | (labels > num_classes)]
    if outside.size:
        raise InputError(f"label {outside[0]} is not 0 to {num_classes}", f"{num_classes} means no class")
    if steps < 1:
        raise InputError(f"steps must be at least 1, got {steps}")
    if not math.isfinite(guidance):
        raise InputError(f"guidance must be a finite number, got {guidance}")
    if not interval[0] < interval[1]:
        raise InputError(f"the interval of guidance must begin before it ends, got {interval}")
