"""The stateful form of the op in standard ONNX ops: see `pom_export.contract` for what a state is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.function_body import Body


class Past(NamedTuple):
    """An incoming state: (B, 2, C) float32 and (B) int64."""

    state: ir.Value
    length: ir.Value


def add_streaming(
    body: Body, p: ir.Value, x: ir.Value, mask: ir.Value | None, past: Past, mode: str, epsilon: float
) -> list[ir.Value]:
    """Add the part of a stateful call after the features; return y in float32, present_state and present_length.

    A function cannot fail. If a length is invalid, or too large for this call's tokens to be added, y and the state are
    NaN and the length is -1.

    Args:
        body: the function's body.
        p: the features, (B, N, C) float32, 0 for masked tokens.
        x: the op's input.
        mask: (B or 1, N) bool, or None.
        past: the state of the earlier tokens.
        mode: "mean" or "causal".
        epsilon: added to the number of tokens if there is a mask.
    """
    is_length = _is_length(body, x, past.length)
    axis = body.constant([1], np.int64)
    old, lost = body.split(past.state, 2, axis=1)
    added = body.token_sum(p, x)
    sums = body.cumulative(p) if mode == "causal" else added
    counts = body.Add(body.Unsqueeze(past.length, axis), _counts(body, x, mask, mode))
    total = body.Unsqueeze(body.Cast(counts, to=ir.DataType.FLOAT), body.constant([2], np.int64))
    is_row = body.Unsqueeze(is_length, body.constant([1, 2], np.int64))
    total = body.Where(is_row, total, body.constant(np.nan))
    divisor = body.Add(total, body.constant(epsilon)) if epsilon and mask is not None else total
    y = body.ratio(body.Add(old, body.Add(lost, sums)), total, divisor)
    tokens = body.token_count(x) if mask is None else body.Squeeze(body.kept_counts(mask, "mean"), axis)
    state = body.Where(is_row, _advance(body, old, lost, added), body.constant(np.nan))
    return [y, state, body.Where(is_length, body.Add(past.length, tokens), body.constant(-1, np.int64))]


def _is_length(body: Body, x: ir.Value, length: ir.Value) -> ir.Value:
    """Return whether each length is valid and small enough for this call's tokens to be added, bool (B)."""
    most = body.Sub(body.constant([contract.MAX_LENGTH], np.int64), body.token_count(x))
    negative = body.Less(length, body.constant(0, np.int64))
    return body.Not(body.Or(negative, body.Greater(length, most)))


def _counts(body: Body, x: ir.Value, mask: ir.Value | None, mode: str) -> ir.Value:
    """Return how many of the call's tokens go into each mean, int64: (N) or (1), or (B or 1, N or 1) with a mask."""
    if mask is not None:
        return body.kept_counts(mask, mode)
    return body.token_numbers(x) if mode == "causal" else body.token_count(x)


def _advance(body: Body, old: ir.Value, lost: ir.Value, added: ir.Value) -> ir.Value:
    """Add a sum (B, 1, C) to the state: Knuth's two-sum, then Dekker's of its result and all that was lost."""
    updated = body.Add(old, added)
    taken = body.Sub(updated, old)
    error = body.Add(body.Sub(old, body.Sub(updated, taken)), body.Sub(added, taken))
    rest = body.Add(lost, error)
    rounded = body.Add(updated, rest)
    return body.Concat(rounded, body.Sub(rest, body.Sub(rounded, updated)), axis=1)
