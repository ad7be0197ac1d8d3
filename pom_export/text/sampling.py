"""Choose the next token from the model's logits."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.values import is_number, is_whole

Array = npt.NDArray[Any]

_SEEDS: Final = 2**64
_GREEDY: Final = "0 always chooses the likeliest token"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Where logits are equal, lower ids are preferred.

    Attributes:
        seed: the same seed gives the same tokens, 0 to 2^64 - 1.
        temperature: divisor of the logits; 0 picks the likeliest token.
        top_k: choose only from the k likeliest; None: from all.
        top_p: choose only from the smallest set of likeliest tokens with at least this total probability; 1: from all.

    Raises:
        InputError: a value is out of range.
    """

    seed: int = 0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        # Comparisons instead of conversions, since an integer may be too large for a float.
        if not (is_number(self.temperature) and 0 <= self.temperature <= sys.float_info.max):
            raise InputError(f"`temperature` must be 0 or more, got {self.temperature}", _GREEDY)
        if self.top_k is not None and not (is_whole(self.top_k) and self.top_k >= 1):
            raise InputError(f"`top_k` must be at least 1, got {self.top_k}", "Leave it out to choose from all tokens")
        if not (is_number(self.top_p) and 0 < self.top_p <= 1):
            raise InputError(f"`top_p` must be above 0 and at most 1, got {self.top_p}", "1 chooses from all tokens")
        if not (is_whole(self.seed) and 0 <= self.seed < _SEEDS):
            raise InputError(f"`seed` must be 0 to 2^64 - 1, got {self.seed}", "Choose another")

    def choose(self, logits: Array, number: int) -> Array:
        """Return one token per row.

        Args:
            logits: (batch, V), of any floating-point type.
            number: how many tokens were chosen for each row before. Together with the seed, it determines the random
                numbers, so that no generator state need be kept.

        Returns:
            (batch,) int64.

        Raises:
            InputError: a row has no largest finite logit.
        """
        scores = logits.astype(np.float64)
        largest = scores.max(-1, keepdims=True)
        if not np.isfinite(largest).all():
            raise InputError(f"the model's logits are not finite: {float(largest.flat[0])}", "Verify the model")
        if self.temperature == 0:
            return scores.argmax(-1)
        with np.errstate(over="ignore"):  # to -inf, which is what the probability rounds to
            scores = (scores - largest) / float(self.temperature)
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            scores = np.where(_largest(scores, self.top_k), scores, -np.inf)
        weights = np.exp(scores)
        if self.top_p < 1:
            weights = np.where(_nucleus(weights, self.top_p), weights, 0.0)
        return _draw(weights, _uniform(self.seed, number, len(weights)))


def _largest(scores: Array, count: int) -> Array:
    """Return a mask of each row's `count` largest entries, preferring the first of equal ones."""
    least = np.partition(scores, -count, axis=-1)[:, -count, np.newaxis]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdims=True)))


def _nucleus(weights: Array, share: float) -> Array:
    """Return a mask of the fewest largest entries whose sum is at least a share of the row's."""
    order = np.argsort(-weights, axis=-1, kind="stable")
    running = np.take_along_axis(weights, order, -1).cumsum(-1)
    # An entry is needed if those before it are not enough; the first one always is.
    needed = np.concatenate([np.zeros_like(running[:, :1]), running[:, :-1]], -1) < share * running[:, -1:]
    needed[:, 0] = True
    kept = np.zeros(weights.shape, np.bool_)
    np.put_along_axis(kept, order, needed, -1)
    return kept


def _uniform(seed: int, number: int, rows: int) -> Array:
    """Return a random number in [0, 1) per row, determined by the seed and the number."""
    # A counter-based generator can be set to any position; the lowest word of its counter advances within the rows.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, number, 0, 0])).random(rows)


def _draw(weights: Array, uniform: Array) -> Array:
    running = weights.cumsum(-1)
    total = running[:, -1:]
    # If a number were rounded up to the total, it would be beyond the last token.
    target = np.minimum(uniform[:, np.newaxis] * total, np.nextafter(total, 0))
    return (running <= target).sum(-1)
