"""Past states for a stateful model, as earlier calls could have left them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.graph.exported_model import PAST_LENGTH, PAST_STATE, PAST_TOKENS, TensorSpec

Array = npt.NDArray[Any]
_HALF_ULP = 2.0**-25
# By how many tokens each row's past is shorter than the longest, in turn: streams of different ages, including a new
# one.
_FEWER = (0, 3, 2**62)


def past_lengths(batch: int, tokens: int, differ: bool) -> Array:
    """Return how many tokens each row of the batch has seen, (B,) int64: `tokens`, or fewer if rows may differ."""
    fewer = np.resize(_FEWER, batch) if differ else np.zeros(batch, np.int64)
    return np.maximum(tokens - fewer, 0).astype(np.int64)


def rows_differ(specs: Sequence[TensorSpec]) -> bool:
    """Return whether the rows of a batch may have seen different numbers of tokens; with keys, that needs a mask."""
    masked = any(spec.dtype == np.bool_ for spec in specs)
    return masked or not any(PAST_TOKENS in spec.axes for spec in specs)


def draw_past(spec: TensorSpec, shape: Sequence[int], lengths: Array, random_state: np.random.Generator) -> Array:
    """Draw a part of the state of rows that have seen the given numbers of tokens.

    Args:
        spec: the input.
        shape: its sizes.
        lengths: tokens seen by each row, (B,).
        random_state: the random generator.
    """
    if spec.name == PAST_LENGTH:
        return lengths
    values = random_state.standard_normal(shape)
    if spec.name == PAST_STATE:
        # Sums of this many features, and a remainder as small as what rounding could have lost.
        sums = (values[..., :1, :] * lengths[:, None, None, None]).astype(np.float32)
        rest = sums * np.clip(values[..., 1:, :], -1, 1) * _HALF_ULP
        values = np.concatenate([sums, rest], axis=-2)
    return values.astype(spec.dtype)
