"""The op in float64, in NumPy, with which the outputs of every executor are compared.

It is written from docs/op.md and uses nothing of the package, not even constants, so it does not share its mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
# A value, and its size: the same sum with every term made positive, to which rounding errors are proportional.
Sized = tuple[Array, Array]

SLOPE, LOW, HIGH = 0.01, -0.1, 6.0
# The largest slope of each gate activation.
STEEPEST = {"identity": 1.0, "sigmoid": 1 / 4, "hardsigmoid": 1 / 6}
ALWAYS_REAL = {"gate_bias", "past_length"}


@dataclass(frozen=True)
class Exact:
    """A call's outputs in float64.

    Attributes:
        y: (B, T, C); for the gated op, z.
        size: the size of y, see `Sized`.
        state: (B, C), the sum that a stateful call leaves; meaningless for other calls.
        state_size: the size of what the call has added to the state.
        past_size: the size of the past state.
        length: (B), the number of tokens in the state.
    """

    y: Array
    size: Array
    state: Array
    state_size: Array
    past_size: Array
    length: Array


def exact(given: Mapping[str, Array], attributes: Mapping[str, Any]) -> Exact:
    """Compute a call.

    Args:
        given: the inputs by their names in the contract; those of rank 1 are placeholders and count as absent.
        attributes: the node's attributes; missing ones are 0.
    """
    inputs = {
        name: array if array.dtype in (np.bool_, np.int64) else array.astype(np.float64)
        for name, array in given.items()
        if array.ndim > 1 or name in ALWAYS_REAL
    }
    with np.errstate(all="ignore"):  # from values that are not finite
        return _exact(inputs, attributes)


def _exact(inputs: dict[str, Array], attributes: Mapping[str, Any]) -> Exact:
    p = features(inputs, attributes)
    rows, tokens, _ = p[0].shape
    weights = np.broadcast_to(inputs.get("mask", np.True_), (rows, tokens)).astype(np.float64)[..., None]
    terms = tuple(
        np.where(weights == 0, 0.0, factor * part) for factor, part in zip((weights, abs(weights)), p, strict=True)
    )
    past = inputs.get("past_state", np.zeros((rows, 1, 1))).sum(1)
    length = inputs.get("past_length", np.zeros(rows, np.int64))
    sums = [part.sum(1) for part in terms]
    y, size = p
    if attributes["mode"] != "features":
        epsilon = attributes.get("epsilon", 0.0) if "mask" in inputs else 0.0
        y, size = _means(terms, weights, (past, length), attributes["mode"], epsilon)
    if "gate" in inputs:
        y, size = _gated((y, size), inputs["gate"], inputs["gate_bias"], attributes["gate_activation"])
    counted = np.broadcast_to(weights.sum(1)[:, 0], rows)
    kept = np.where(np.isfinite(counted), counted, 0).astype(np.int64)
    return Exact(y, size, past + sums[0], sums[1], abs(past), length + kept)


def features(inputs: Mapping[str, Array], attributes: Mapping[str, Any]) -> Sized:
    """Return p (B, N, C) and its size, of inputs in float64."""
    if attributes.get("degree"):
        return _product(inputs["x"], attributes["degree"])
    p = _polynomial(inputs["x"], inputs["coefficients"])
    return _rotated(p, inputs["cos"], inputs["sin"], attributes["rotary_blocks"]) if "cos" in inputs else p


def _polynomial(x: Array, coefficients: Array) -> Sized:
    h = np.clip(np.where(x < 0, SLOPE * x, x), LOW, HIGH)
    value, size, power = np.zeros_like(h), np.zeros_like(h), np.ones_like(h)
    for column in coefficients.T:
        power = power * h
        term = column * power
        value += term
        size += abs(term)
    return value, size


def _product(x: Array, degree: int) -> Sized:
    chunks = np.stack(np.split(x, degree, axis=-1))
    erf = torch.special.erf(torch.from_numpy(chunks) / 2**0.5).numpy()
    value, size = chunks / 2 * (1 + erf), abs(chunks) / 2 * (1 + abs(erf))
    return np.concatenate([*value.cumprod(0)], axis=-1), np.concatenate([*size.cumprod(0)], axis=-1)


def _rotated(p: Sized, cos: Array, sin: Array, blocks: int) -> Sized:
    tables = list(zip(np.split(cos, blocks, axis=-1), np.split(sin, blocks, axis=-1), strict=True))
    values, sizes = ([*zip(*2 * [iter(np.split(part, 2 * blocks, axis=-1))], strict=True)] for part in p)
    turned, bounds = [], []
    for (first, second), (large, larger), (c, s) in zip(values, sizes, tables, strict=True):
        turned += [first * c - second * s, second * c + first * s]
        bounds += [large * abs(c) + larger * abs(s), larger * abs(c) + large * abs(s)]
    return np.concatenate(turned, axis=-1), np.concatenate(bounds, axis=-1)


def _means(terms: Sized, weights: Array, past: Sized, mode: str, epsilon: float) -> Sized:
    (sums, sizes), counts = terms, weights
    if mode == "mean":
        sums, sizes, counts = (part.sum(1, keepdims=True) for part in (sums, sizes, counts))
    else:
        sums, sizes, counts = (part.cumsum(1) for part in (sums, sizes, counts))
    state, length = past[0][:, None], past[1][:, None, None]
    counts = counts + length
    divisor = np.where(counts == 0, 1.0, counts + epsilon)
    means = (np.where(counts == 0, 0.0, part / divisor) for part in (sums + state, (sizes + abs(state))))
    value, size = means
    return value, abs(size)


def _gated(y: Sized, gate: Array, bias: Array, activation: str) -> Sized:
    total = gate + bias
    s = {"identity": total, "sigmoid": 1 / (1 + np.exp(-total)), "hardsigmoid": np.clip(total / 6 + 0.5, 0, 1)}[
        activation
    ]
    size = abs(s) + STEEPEST[activation] * (abs(gate) + abs(bias))
    heads = y[0].shape[-1] // gate.shape[-1]
    return s.repeat(heads, -1) * y[0], size.repeat(heads, -1) * y[1]
