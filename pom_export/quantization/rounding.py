"""Round a matrix to integers with scales, such that its products change as little as possible.

`nearest` chooses the scales by search. `gptq` also moves what rounding one row changes to the rows that are still to be
rounded, as far as the activations correlate: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers" (arXiv 2210.17323), with scales that are fixed first and rows in the order of their weight.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.graph.quantized.block_weights import LARGEST, QuantizedWeight

_Array = npt.NDArray[Any]
# Largest value that stays in range, relative to the block's largest: from cutting off a third of it to none.
_SHARES: Final = np.linspace(0.7, 1.0, 11)
# Below it, an integer's share of a number may not be a normal float32.
_SMALLEST: Final = 1e-35
# Of the mean diagonal of the activations' products, added to it, so that it can be inverted.
_DAMPING: Final = 0.01
# Rows that are rounded before the rows after them are corrected.
_TOGETHER: Final = 64


def nearest(
    matrix: npt.NDArray[np.float32],
    bits: int,
    block: int,
    importance: _Array | None = None,
    *,
    largest: int | None = None,
    positive: bool = False,
) -> QuantizedWeight:
    """Round each number to the nearest multiple of its block's scale.

    Args:
        matrix: float32, (K, N).
        bits: 4 or 8.
        block: how many rows share a scale; K for one scale per column.
        importance: (K,) how much an error in a row counts: the mean square of what it is multiplied by; None: equally.
        largest: the largest integer to use; default: the largest of the bits.
        positive: whether scales must be positive.
    """
    scales = best_scales(matrix, bits, block, importance, largest, positive=positive)
    return QuantizedWeight(_rounded(matrix, _spread(scales, block, len(matrix)), bits, largest), scales, bits, block)


def gptq(
    matrix: npt.NDArray[np.float32], bits: int, block: int, moments: _Array, *, positive: bool = False
) -> QuantizedWeight:
    """Round a matrix such that its products with given activations change little.

    Args:
        matrix: float32, (K, N).
        bits: 4 or 8.
        block: how many rows share a scale.
        moments: (K, K), the mean of x^T x over the activations x.
        positive: whether scales must be positive.
    """
    diagonal = np.diagonal(moments).astype(np.float64)
    mean = float(diagonal.mean())
    if not math.isfinite(mean) or mean <= 0:
        return nearest(matrix, bits, block, positive=positive)
    scales = best_scales(matrix, bits, block, diagonal, positive=positive)
    order = np.argsort(-diagonal, kind="stable")
    factor = _inverse_factor(moments[np.ix_(order, order)], mean)
    rows = _spread(scales, block, len(matrix))[order]
    left = matrix[order].astype(np.float64)
    values = np.empty(matrix.shape, np.int8)
    for start in range(0, len(matrix), _TOGETHER):
        stop = min(start + _TOGETHER, len(matrix))
        errors = np.empty((stop - start, matrix.shape[1]))
        for row in range(start, stop):
            values[row] = _rounded(left[row], rows[row], bits, None)
            errors[row - start] = (left[row] - values[row] * rows[row]) / factor[row, row]
            left[row:stop] -= np.outer(factor[row, row:stop], errors[row - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    restored = np.empty_like(values)
    restored[order] = values
    return QuantizedWeight(restored, scales, bits, block)


def error_of(matrix: npt.NDArray[np.float32], weight: QuantizedWeight, moments: _Array) -> float:
    """Return how far products with a rounded matrix are from those with the matrix itself.

    Args:
        matrix: float32, (K, N).
        weight: what it was rounded to.
        moments: (K, K), the mean of x^T x over the activations x.

    Returns:
        The root mean square of the difference, relative to that of the products; 0 if these are all 0.
    """
    off = weight.dequantized() - matrix
    largest = float(np.abs(moments).max())
    if not largest:
        return 0.0
    # In float32, which is precise enough, and in units in which nothing overflows or underflows.
    unit = (moments / largest).astype(np.float32)
    scale = float(np.abs(matrix).max()) or 1.0
    squares = [
        float(np.einsum("kn,kn->", part, unit @ part, dtype=np.float64)) for part in (off / scale, matrix / scale)
    ]
    return math.sqrt(max(squares[0], 0.0) / squares[1]) if squares[1] > 0 else 0.0


def best_scales(
    matrix: npt.NDArray[np.float32],
    bits: int,
    block: int,
    importance: _Array | None,
    largest: int | None = None,
    *,
    positive: bool = False,
) -> npt.NDArray[np.float32]:
    """Return the scale of each block, of those that cut off more or less, with the smallest weighted square error.

    A negative scale is as good as a positive one where it is allowed, and lets the largest number be the smallest
    integer.

    Returns:
        float32, (ceil(K / block), N).
    """
    most = largest or LARGEST[bits]
    blocks = -(-len(matrix) // block)
    weights = np.ones(len(matrix)) if importance is None else np.maximum(importance, 0)
    weights = weights / (weights.max(initial=0) or 1)
    scales = np.empty((blocks, matrix.shape[1]), np.float32)
    for index in range(blocks):
        part = matrix[index * block : (index + 1) * block]
        share = weights[index * block : (index + 1) * block, None].astype(np.float32)
        share = share if share.any() else np.ones_like(share)
        scales[index] = _best_of_block(part, share, bits, most, positive)
    return scales


def _best_of_block(part: _Array, weights: _Array, bits: int, most: int, positive: bool) -> _Array:
    """Return the best scale of each column: part is (block, N), weights (block, 1)."""
    extreme = np.take_along_axis(part, np.abs(part).argmax(0)[None], 0)[0].astype(np.float64)
    # Numbers that no float32 scale fits count as 0, for which any scale will do.
    extreme = np.where(np.abs(extreme) < _SMALLEST, np.inf, extreme)
    unit = (part / extreme).astype(np.float32)  # of squares, none underflows or overflows
    # One integer more below zero than above; with fewer integers than the bits have, as many.
    below = most + 1 if most == LARGEST[bits] else most
    best = np.full(part.shape[1], np.inf)
    chosen = np.ones(part.shape[1])
    for share in _SHARES:
        for step in (-share / below, share / most):
            rounded = np.clip(np.rint(unit / np.float32(step)), -below, most)
            rounded *= np.float32(step)
            rounded -= unit
            error = np.einsum("i,ij,ij->j", weights[:, 0], rounded, rounded)
            allowed = (step > 0) == (extreme > 0) if positive else True
            better = (error < best) & allowed
            best, chosen = np.where(better, error, best), np.where(better, step, chosen)
    return np.where(np.isinf(extreme), 1.0, chosen * extreme)


def _rounded(matrix: _Array, scales: _Array, bits: int, largest: int | None) -> npt.NDArray[np.int8]:
    most = largest or LARGEST[bits]
    below = most + 1 if most == LARGEST[bits] else most
    return np.clip(np.rint(matrix / scales), -below, most).astype(np.int8)


def _spread(scales: npt.NDArray[np.float32], block: int, rows: int) -> npt.NDArray[np.float32]:
    """Return the scale of each row: (rows, N)."""
    return np.repeat(scales, block, axis=0)[:rows]


def _inverse_factor(moments: _Array, mean: float) -> _Array:
    """Return the upper triangle U with U^T U = inverse of the moments, damped so that they have one."""
    # With the order of rows and columns reversed, it is the inverse of Cholesky's lower triangle.
    damped = moments[::-1, ::-1].astype(np.float64)
    damping = _DAMPING * mean
    while True:
        np.fill_diagonal(damped, np.diagonal(damped) + damping)
        try:
            return _inverse_of_cholesky(damped)[::-1, ::-1]
        except np.linalg.LinAlgError:
            damping *= 10


def _inverse_of_cholesky(matrix: _Array) -> _Array:
    """Return the inverse of the lower triangle L with L L^T = matrix, by halves, which takes products only."""
    half = len(matrix) // 2
    if half < _TOGETHER:
        return np.linalg.inv(np.linalg.cholesky(matrix))
    inverse = np.zeros_like(matrix)
    inverse[:half, :half] = _inverse_of_cholesky(matrix[:half, :half])
    below = matrix[half:, :half] @ inverse[:half, :half].T
    inverse[half:, half:] = _inverse_of_cholesky(matrix[half:, half:] - below @ below.T)
    inverse[half:, :half] = -inverse[half:, half:] @ (below @ inverse[:half, :half])
    return inverse
