"""Match the tensors of a module's call with the values of a graph."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from pom_export.parity.case import Array
from pom_export.parity.measure import measure

_MATRIX_RANK = 2


def relative_error(actual: Array, reference: Array) -> float:
    """Return the largest difference over the reference's largest magnitude; infinity if only one is finite somewhere.

    Args:
        actual: the array.
        reference: the expected array, of the same shape.
    """
    found = measure(actual, reference, partial=True)
    if found.odd:
        return math.inf
    return found.max_abs / found.magnitude if found.magnitude else found.max_abs


def closest(candidates: Sequence[Array], wanted: Array) -> Array | None:
    """Return the candidate with the values closest to those wanted; None if none can be what is wanted.

    A graph may hold a tensor with its last two axes exchanged, or cut along the last one.

    Args:
        candidates: values of a graph.
        wanted: the tensor, of floating-point numbers.
    """
    floats = [array for array in candidates if array.dtype.kind not in "biu"]
    same = [array for array in floats if array.shape == wanted.shape]
    if not same and wanted.ndim >= _MATRIX_RANK:
        turned = (array.swapaxes(-1, -2) for array in floats if array.ndim >= _MATRIX_RANK)
        same = [array for array in turned if array.shape == wanted.shape]
    if not same:
        return _joined(floats, wanted)
    return min(same, key=lambda array: _distance(array, wanted)) if len(same) > 1 else same[0]


def nearer(one: Array | None, other: Array | None, wanted: Array) -> Array | None:
    """Return the one of two arrays that is closer to what is wanted."""
    if one is None or other is None:
        return one if other is None else other
    return other if _distance(other, wanted) < _distance(one, wanted) else one


def moved_axes(array: Array, wanted: Array, tolerance: float) -> str:
    """Return which exchange or reversal of axes makes an array the one that is wanted; empty if none does."""
    for one, other in itertools.combinations(range(wanted.ndim), 2):
        if wanted.shape[one] == wanted.shape[other] and relative_error(array.swapaxes(one, other), wanted) <= tolerance:
            return f"axes {one} and {other} of its output are exchanged"
    for axis in range(wanted.ndim):
        if relative_error(np.flip(array, axis), wanted) <= tolerance:
            return f"its output is reversed along axis {axis}"
        for shift in (1, -1):
            if relative_error(np.roll(array, shift, axis), wanted) <= tolerance:
                return f"its output is shifted by one along axis {axis}"
    return ""


def _joined(parts: Sequence[Array], wanted: Array) -> Array | None:
    """Return the tensor that was cut into several parts along its last axis; None if they don't add up to it."""
    if wanted.ndim < _MATRIX_RANK:
        return None
    fitting = [part for part in parts if part.ndim == wanted.ndim and part.shape[:-1] == wanted.shape[:-1]]
    if len(fitting) < 2 or sum(part.shape[-1] for part in fitting) != wanted.shape[-1]:
        return None
    return np.concatenate(fitting, axis=-1)


def _distance(array: Array, wanted: Array) -> float:
    found = measure(array, wanted, partial=True)
    return math.inf if found.odd else found.rms
