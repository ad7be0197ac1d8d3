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
"""Returns the clean images (B, C, H, W) for noisy ones of that shape, times (B) and labels (B) int64."""

_LEAST_REST = 0.05  # of the time, by which a velocity is divided
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

    The time runs from 0, noise, to 1 in steps of one length: Heun's, which look at both ends, and the last one Euler's.
    An image moves with the velocity v = (prediction - z) / max(1 - t, 0.05); guidance makes it v_u + w (v_c - v_u), v_c
    being that of the label and v_u that of no class.

    Args:
        predict: the model: an exported one is `lambda x, t, y: session.run(None, {"x": x, "t": t, "y": y})[0]`. With
            guidance it is called with 2 B rows, images with their labels and then with no class.
        noise: (B, C, H, W), normal; its type is the model's. Steps are computed in float32 at least.
        labels: (B) integers below `num_classes`, or `num_classes` for no class.
        num_classes: number of labels the model knows.
        steps: number of steps.
        guidance: w; 1: none, and half as many rows.
        interval: of the time in which there is guidance: after the first, or from the start on where that is 0, and
            before the second.

    Returns:
        (B, C, H, W) in float32, or float64 for noise of that type; the pixels are those that the model was trained on,
        usually from -1 to 1.

    Raises:
        InputError: a shape, a label or a number does not fit.
    """
    labels = np.asarray(labels)
    _check(noise, labels, num_classes, steps, guidance, interval)
    field = _Field(predict, noise.dtype, labels.astype(np.int64), num_classes, float(guidance), interval)
    z = noise.astype(np.result_type(noise.dtype, np.float32))
    # Python's numbers: numpy's would make all of it float64.
    for start, stop in pairwise(np.linspace(0, 1, steps + 1).tolist()):
        velocity = field(z, start)
        if stop < 1:
            velocity = (velocity + field(z + (stop - start) * velocity, stop)) / 2
        z = z + (stop - start) * velocity
    return z


@dataclass(frozen=True)
class _Field:
    """The velocity of images, given where they are and the time."""

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
