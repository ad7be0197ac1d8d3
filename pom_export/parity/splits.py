"""Cases for a stateful model: one sequence in one call, token by token, and in calls of random lengths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from pom_export.graph.exported_model import InputLimits, is_past
from pom_export.parity.case import Array, Case
from pom_export.runtime.streaming.interface import MASK

# Rows, tokens and number of calls of each case; 0 calls: one for each token.
_PLANS: Final = ((2, 41, 1), (1, 13, 0), (3, 29, 4), (2, 97, 7))
_LONG, _LONG_CALLS = 700, 3
# A model with a table of more positions is not compared up to its last one.
_LONGEST_TABLE: Final = 4200
_SEED: Final = 0


def split_cases(
    inputs: Mapping[str, Array],
    streamed: Collection[str],
    contexts: Collection[str],
    limits: InputLimits,
    seed: int = _SEED,
) -> list[Case]:
    """Return cases whose outputs over all calls must be those of one pass.

    Args:
        inputs: an example of each input, by name: of the past, only its shape and type matter, with a size of 0 for
            earlier tokens.
        streamed: the inputs that have an entry for each token of a call.
        contexts: the inputs that only the first call gets.
        limits: limits on the inputs.
        seed: seed of the random values and lengths.
    """
    random = np.random.default_rng([seed, 7])
    most = limits.tokens
    longest = min(most, _LONGEST_TABLE) if most is not None else _LONG
    plans = [*_PLANS, (1, longest, _LONG_CALLS)]
    cases = []
    for rows, wanted, calls in plans:
        tokens = min(wanted, most or wanted)
        cuts = _cuts(tokens, tokens if calls == 0 else min(calls, tokens), random)
        feed = {
            name: _past(array, rows) if is_past(name) else _values(name, array, streamed, rows, tokens, limits, random)
            for name, array in inputs.items()
        }
        name = f"{tokens} tokens of {rows} row{'s' if rows > 1 else ''} in {len(cuts) + 1} call{'s' if cuts else ''}"
        axes = dict.fromkeys(streamed, 1)
        once = dict.fromkeys(contexts, 1)
        cases.append(Case(name, feed, cuts, axes, once=once))
        if MASK in inputs and rows > 1 and cuts:
            ragged = {**feed, MASK: _padding(rows, tokens, cuts, random)}
            cases.append(Case(f"{name}, with padding", ragged, cuts, axes, partial=True, once=once))
    return list({case.name: case for case in cases}.values())


def _padding(rows: int, tokens: int, cuts: Sequence[int], random: np.random.Generator) -> Array:
    """Return a mask that leaves out tokens at the end of each row in every call, at least one of them in all."""
    mask = np.zeros((rows, tokens), np.bool_)
    for start, stop in pairwise((0, *cuts, tokens)):
        kept = random.integers(0, stop - start + 1, rows)
        mask[:, start:stop] = np.arange(stop - start) < kept[:, None]
    mask[:, 0] = True
    return mask


def cuts_of(tokens: int, seed: int) -> tuple[int, ...]:
    """Return the positions at which a sequence is split into up to 5 calls of random lengths."""
    return _cuts(tokens, min(tokens, 5), np.random.default_rng([seed, 8]))


def _cuts(tokens: int, calls: int, random: np.random.Generator) -> tuple[int, ...]:
    places: Sequence[int] = random.permutation(np.arange(1, tokens))[: calls - 1].tolist()
    return tuple(sorted(places))


def _past(array: Array, rows: int) -> Array:
    return np.zeros((rows, *array.shape[1:]), array.dtype)


def _values(
    name: str,
    array: Array,
    streamed: Collection[str],
    rows: int,
    tokens: int,
    limits: InputLimits,
    random: np.random.Generator,
) -> Array:
    """Return an input's values: those of the example, in another order, or random ones where its limits are known."""
    if not array.ndim:
        return array
    shape = (rows, tokens, *array.shape[2:]) if name in streamed else (rows, *array.shape[1:])
    if name in limits.values:
        return random.integers(0, limits.values[name][0], shape).astype(array.dtype)
    if name in streamed and array.dtype.kind == "f":
        return (random.standard_normal(shape) * max(float(array.std()), 1e-3) + array.mean()).astype(array.dtype)
    picked = array[random.integers(0, array.shape[0], rows)]
    return picked[:, random.integers(0, array.shape[1], tokens)] if name in streamed else picked
