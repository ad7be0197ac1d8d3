"""Choose the next token from the model's logits."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.values import is_number, is_whole

Array = npt.NDArray[Any]

_SEEDS: Final = 2**64
# Rows are computed in blocks of about as many numbers, which a processor's cache holds.
_BLOCK: Final = 2**16
# How many of the likeliest tokens mostly have as much of the probability as is wanted.
_FEW: Final = 64
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
        uniform = _uniform(self.seed, number, len(logits))
        return _choose(logits, [self] * len(logits), lambda rows: uniform[rows])

    def variant(self, number: int) -> Sampling:
        """Return the sampling of the text with this number, from 0, of several that are asked for at once.

        Its seed is that many more (modulo 2^64), so that each is the text that this seed gives by itself.
        """
        return replace(self, seed=(self.seed + number) % _SEEDS)


def choose_each(logits: Array, samplings: Sequence[Sampling], numbers: Sequence[int]) -> Array:
    """Return one token per row, each as `Sampling.choose` would choose it for this row alone.

    Args:
        logits: (batch, V), of any floating-point type.
        samplings: how each row's token is chosen.
        numbers: how many tokens were chosen for each row before.

    Returns:
        (batch,) int64.

    Raises:
        InputError: a row has no largest finite logit.
    """
    return _choose(logits, samplings, lambda rows: _uniform_each([(samplings[row].seed, numbers[row]) for row in rows]))


def _choose(logits: Array, samplings: Sequence[Sampling], uniform: Callable[[Array], Array]) -> Array:
    """Return one token per row, given what returns a random number in [0, 1) for each of some rows."""
    # Other types are converted exactly, and have no fast argmax.
    known = logits if logits.dtype in (np.float32, np.float64) else logits.astype(np.float32)
    tokens = known.argmax(-1)
    largest = np.take_along_axis(known, tokens[:, np.newaxis], -1)
    if not np.isfinite(largest).all():
        bad = largest[~np.isfinite(largest)]
        raise InputError(f"the model's logits are not finite: {float(bad[0])}", "Verify the model")
    sampled = np.flatnonzero([sampling.temperature != 0 for sampling in samplings])
    count = max(1, _BLOCK // logits.shape[-1])
    for start in range(0, len(sampled), count):
        rows = sampled[start : start + count]
        scores = known[rows].astype(np.float64) - largest[rows].astype(np.float64)
        tokens[rows] = _draw(_weights(scores, [samplings[row] for row in rows]), uniform(rows))
    return tokens


def _weights(scores: Array, samplings: Sequence[Sampling]) -> Array:
    """Return each token's relative probability (batch, V), given the logits less the largest of each row."""
    temperatures = np.array([float(sampling.temperature) for sampling in samplings])
    with np.errstate(over="ignore"):  # to -inf, which is what the probability rounds to
        scores = scores / temperatures[:, np.newaxis]
    counts = np.array([min(sampling.top_k or scores.shape[-1], scores.shape[-1]) for sampling in samplings])
    for count in set(counts[counts < scores.shape[-1]].tolist()):
        rows = np.flatnonzero(counts == count)
        scores[rows] = np.where(_largest(scores[rows], count), scores[rows], -np.inf)
    weights = np.exp(scores)
    for row, sampling in enumerate(samplings):
        if sampling.top_p < 1:
            kept = _nucleus(weights[row], float(sampling.top_p))
            some = weights[row, kept]
            weights[row] = 0
            weights[row, kept] = some
    return weights


def _largest(scores: Array, count: int) -> Array:
    """Return a mask of each row's `count` largest entries, preferring the first of equal ones."""
    least = np.partition(scores, -count, axis=-1)[:, -count, np.newaxis]
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(-1) <= count - above.sum(-1, keepdims=True)))


def _nucleus(weights: Array, share: float) -> Array:
    """Return the places of the fewest largest of some weights (V,) whose sum is at least a share of all of them."""
    wanted, count = share * weights.sum(), _FEW
    while True:
        # Mostly, they are among a few, which are found sooner than all are sorted.
        places = np.arange(len(weights))
        if count < len(weights):
            places = np.flatnonzero(weights >= np.partition(weights, -count)[-count])
        places = places[np.argsort(-weights[places], kind="stable")]
        running = weights[places].cumsum()
        if count >= len(weights) or running[-1] >= wanted:
            # One is needed if those before it are not enough; the first one always is.
            return places[: 1 + np.count_nonzero(running[:-1] < wanted)]
        count *= _FEW


def _uniform(seed: int, number: int, rows: int) -> Array:
    """Return a random number in [0, 1) per row, determined by the seed and the number."""
    # A counter-based generator can be set to any position; the lowest word of its counter advances within the rows.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, number, 0, 0])).random(rows)


class _Generator(threading.local):
    """A thread's own generator. Setting its state takes a tenth of the time of making another."""

    def __init__(self) -> None:
        self.bits = np.random.Philox(key=0)
        self.state: Any = self.bits.state
        self.numbers = np.random.Generator(self.bits)


_GENERATOR: Final = _Generator()


def _uniform_each(seeds_and_numbers: Sequence[tuple[int, int]]) -> Array:
    """Return a random number in [0, 1) per row, each as `_uniform` gives it for its seed and number alone."""
    state, uniform = _GENERATOR.state, np.empty(len(seeds_and_numbers))
    for row, (seed, number) in enumerate(seeds_and_numbers):
        state["state"]["key"][:] = seed, 0
        state["state"]["counter"][:] = 0, number, 0, 0
        _GENERATOR.bits.state = state
        uniform[row] = _GENERATOR.numbers.random()
    return uniform


def _draw(weights: Array, uniform: Array) -> Array:
    running = weights.cumsum(-1)
    total = running[:, -1:]
    # If a number were rounded up to the total, it would be beyond the last token.
    target = np.minimum(uniform[:, np.newaxis] * total, np.nextafter(total, 0))
    return (running <= target).sum(-1)
