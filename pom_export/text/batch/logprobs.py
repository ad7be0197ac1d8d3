"""The logarithms of tokens' probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
# The likeliest tokens with their logprobs, the likeliest first.
Likeliest = tuple[tuple[int, float], ...]
Logprob = tuple[float, Likeliest]


def logprobs_of(logits: Array, tokens: Array, count: int) -> list[Logprob]:
    """Return the logprob of a token in each row, and the likeliest tokens with theirs.

    Args:
        logits: (rows, V), of any floating-point type.
        tokens: (rows,) ids.
        count: how many of the likeliest; of equal ones, lower ids are preferred.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    chosen = np.take_along_axis(scores, np.asarray(tokens)[:, np.newaxis], -1)[:, 0]
    return [(float(logprob), _likeliest(row, count)) for row, logprob in zip(scores, chosen, strict=True)]


def _likeliest(row: Array, count: int) -> Likeliest:
    count = min(count, len(row))
    if not count:
        return ()
    # Of those at the border, all are compared, so that of equal ones the first are taken.
    ids = np.flatnonzero(row >= np.partition(row, -count)[-count])
    best = ids[np.argsort(-row[ids], kind="stable")[:count]]
    return tuple((int(token), float(row[token])) for token in best)
