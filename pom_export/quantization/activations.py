"""Scales for activations: what a product's inputs are on given inputs of the model, and which steps suit them best."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.debugging.tapping import save_tapped
from pom_export.errors import SEE_CAUSE, InputError, reason_of
from pom_export.files import scratch_folder
from pom_export.graph.quantized.block_weights import FLOAT8, LARGEST, LARGEST_FLOAT8
from pom_export.parity.case import Arrays
from pom_export.runtime.session import inference_session

MAXIMUM: Final = "maximum"
PERCENTILE: Final = "percentile"
SQUARES: Final = "squares"
METHODS: Final = (MAXIMUM, PERCENTILE, SQUARES)
# The method for each type that erred least on the demo's language model; docs/tensorrt.md has the numbers.
DEFAULT_METHODS: Final = {"int8": SQUARES, "fp8": MAXIMUM}
# How many times larger than the largest magnitude seen an activation of type fp8 may be before it is cut off. Steps of
# fp8 are relative to the values, so a power of two costs nothing but the smallest of 2**15 that are told from 0.
_HEADROOM: Final = 8.0
# Of all magnitudes, how many the method "percentile" leaves in range.
_IN_RANGE: Final = 0.9999
_BINS: Final = 8192
# Thresholds to try, relative to the largest magnitude.
_SHARES: Final = np.geomspace(0.05, 1.0, 80)


class Magnitudes:
    """How often a value's magnitudes were of each size, for any number of arrays.

    Attributes:
        counts: float64, (8192,): how many were in each of as many bins of equal width.
        width: the width of a bin; 0 before the first magnitude that is not 0.
        largest: the largest one.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS)
        self.width = 0.0
        self.largest = 0.0

    def add(self, array: npt.NDArray[Any]) -> None:
        """Count an array's magnitudes, which are finite."""
        sizes = np.abs(array.astype(np.float32, copy=False)).ravel()
        peak = float(sizes.max(initial=0))
        self.largest = max(self.largest, peak)
        if not self.width:
            self.width = peak / _BINS
        if not self.width:
            self.counts[0] += sizes.size
            return
        while peak > self.width * _BINS:
            # Twice the range: each two bins become one.
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([merged, np.zeros_like(merged)])
            self.width *= 2
        self.counts += np.histogram(sizes, _BINS, (0, self.width * _BINS))[0]

    def threshold(self, method: str, kind: str) -> float:
        """Return the magnitude that is to be the largest of a type; larger ones are cut off.

        Args:
            method: one of METHODS: the largest, eight times that for "fp8"; that which 99.99 % are below; or the one of
                80 that gives the rounded values the smallest square error.
            kind: "int8" or "fp8".
        """
        if method == MAXIMUM:
            return self.largest * (_HEADROOM if kind == "fp8" else 1)
        if method == PERCENTILE:
            below = np.cumsum(self.counts) / self.counts.sum()
            return min(self.width * float(1 + np.searchsorted(below, _IN_RANGE)), self.largest)
        centers = (np.arange(_BINS) + 0.5) * self.width
        candidates = self.largest * _SHARES
        errors = [
            float((self.counts * (_rounded(centers, threshold, kind) - centers) ** 2).sum()) for threshold in candidates
        ]
        return float(candidates[int(np.argmin(errors))])


def _rounded(values: npt.NDArray[Any], threshold: float, kind: str) -> npt.NDArray[Any]:
    scale = threshold / largest_of(kind)
    scaled = np.minimum(values / scale, largest_of(kind))
    rounded = np.rint(scaled) if kind == "int8" else scaled.astype(np.float32).astype(FLOAT8).astype(np.float64)
    return rounded * scale


def largest_of(kind: str) -> float:
    """Return the largest value of "int8" or "fp8"."""
    return LARGEST[8] if kind == "int8" else LARGEST_FLOAT8


def activation_scales(
    model: Path, inputs: Collection[str], feeds: Iterable[Arrays], kind: str, method: str | None = None
) -> dict[str, float]:
    """Run a float file on given inputs, and return a scale for each input of its products.

    Args:
        model: the file, of float32 or float16. ONNX Runtime runs it on the CPU, with our kernels.
        inputs: names of the products' inputs.
        feeds: inputs of the model.
        kind: the type that activations are rounded to: "int8" or "fp8".
        method: one of METHODS; None: that of DEFAULT_METHODS.

    Returns:
        What activations are divided by before they are rounded, by name, without those that are always 0.

    Raises:
        InputError: there are no feeds, ONNX Runtime refuses one, or an activation is once NaN or infinite.
    """
    found = magnitudes(model, inputs, feeds)
    method = method or DEFAULT_METHODS[kind]
    return {name: seen.threshold(method, kind) / largest_of(kind) for name, seen in found.items() if seen.largest}


def magnitudes(model: Path, inputs: Collection[str], feeds: Iterable[Arrays]) -> dict[str, Magnitudes]:
    """Run a file on given inputs, and return the magnitudes of its inner values; see `activation_scales`."""
    seen = {name: Magnitudes() for name in inputs}
    calls = 0
    with scratch_folder() as folder:
        save_tapped(model, seen, folder / "tapped.onnx")
        session = inference_session(folder / "tapped.onnx")
    for feed in feeds:
        calls += 1
        for name, array in _run(session, seen, feed, calls).items():
            seen[name].add(array)
    if not calls:
        raise InputError("there are no inputs for calibration", "Give at least one")
    return seen


def _run(session: Any, names: Collection[str], feed: Arrays, call: int) -> dict[str, npt.NDArray[Any]]:
    """Return the named values for some inputs, all finite."""
    inner = [name for name in names if name not in feed]
    try:
        made = dict(zip(inner, session.run(inner, dict(feed)), strict=True)) if inner else {}
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise InputError(
            f"ONNX Runtime fails on input {call} for calibration: {reason_of(error)}", SEE_CAUSE
        ) from error
    arrays = {name: feed[name] if name in feed else made[name] for name in names}
    for name, array in arrays.items():
        finite = np.isfinite(array)
        if not finite.all():
            raise InputError(
                f"{name}, which a product multiplies, becomes {array[~finite].flat[0]} on input {call} for calibration",
                "Give inputs on which the model's values are finite",
            )
    return arrays
