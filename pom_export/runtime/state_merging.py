"""Add up states of different tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pom_export.contract import MAX_LENGTH
from pom_export.errors import InputError, kind_of
from pom_export.graph.exported import PAST_LENGTH, PAST_STATE
from pom_export.runtime.state import State

Array = npt.NDArray[Any]
# past_state (batch, L, 2, C) or (batch, 2, C), and past_length (batch).
Pair = tuple[Array, Array]
_StateOrPair = TypeVar("_StateOrPair", State, Pair)
_PAIR_AXIS = -2


def merge_states(*states: _StateOrPair) -> _StateOrPair:
    """Return the state of all tokens that the given states hold, each token in one of them.

    Sums of polynomials add up, whoever computed them: shards of a sequence, or streams in parallel. This holds for
    states computed of the inputs that a mixer would get in one pass: for a single mixer, or layer by layer. A deeper
    layer's inputs depend on the tokens before, so whole states of a deep causal model, each begun from nothing, do
    not add up to what one pass gives.

    Args:
        *states: at least one: States, or pairs of `past_state` (batch, L, 2, C) float32 (a pair of a sum and what its
            rounding lost, in the last axis but one) and `past_length` (batch) integers.

    Returns:
        Of the same kind, of new arrays; sums as precise as twice float32.

    Raises:
        InputError: shapes or types differ, states are of different models, or hold what is no sum: a cache of keys
            and values, a convolution's window; a length is negative, or the sum of them more than an int64.
    """
    if not states:
        raise InputError("merge_states was given no states", "Give at least one")
    given: Sequence[Any] = states
    whole = [state for state in given if isinstance(state, State)]
    if 0 < len(whole) < len(states):
        raise InputError("merge_states was given States and pairs of arrays", "Give all in one form")
    merged: Any = _merge_whole(whole) if whole else _merge_pairs([_checked(state) for state in given])
    return cast("_StateOrPair", merged)


def _merge_whole(states: list[State]) -> State:
    for state in states:
        state.model.check_same(states[0].model)
        others = sorted(state.arrays.keys() - {PAST_STATE, PAST_LENGTH})
        if others or PAST_STATE not in state.arrays:
            what = f"{others[0]}, which is no sum" if others else f"no {PAST_STATE}"
            raise InputError(f"a state with {what} cannot be merged", "Only states of mixers add up")
    merged = _merge_pairs([_checked((state.arrays[PAST_STATE], state.arrays[PAST_LENGTH])) for state in states])
    return State(dict(zip((PAST_STATE, PAST_LENGTH), merged, strict=True)), states[0].model)


def _checked(pair: Any) -> Pair:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError(
            f"merge_states was given {kind_of(pair)}", f"Give pairs ({PAST_STATE}, {PAST_LENGTH}), or States"
        )
    sums, lengths = np.asarray(pair[0]), np.asarray(pair[1])
    if sums.dtype != np.float32 or sums.ndim < 3 or sums.shape[_PAIR_AXIS] != 2:
        raise InputError(f"{PAST_STATE} is {sums.dtype}{list(sums.shape)}", "It must be float32 (batch, L, 2, C)")
    if lengths.dtype.kind not in "iu" or lengths.shape != sums.shape[:1]:
        raise InputError(f"{PAST_LENGTH} is {lengths.dtype}{list(lengths.shape)}", "It must hold one a row")
    if (lengths < 0).any():
        raise InputError(f"{PAST_LENGTH} has {lengths.min()}", "It counts tokens: 0 or more")
    return sums, lengths


def _merge_pairs(pairs: list[Pair]) -> Pair:
    shape = pairs[0][0].shape
    for sums, _ in pairs:
        if sums.shape != shape:
            raise InputError(
                f"states have the shapes {list(shape)} and {list(sums.shape)}", "Merge states of one shape"
            )
    # float64 has more digits than a pair of float32.
    total = np.sum([sums.astype(np.float64).sum(_PAIR_AXIS) for sums, _ in pairs], axis=0)
    first = total.astype(np.float32)
    rest = np.where(np.isfinite(first), total - first, 0.0).astype(np.float32)
    # As Python's integers, which do not overflow.
    lengths = np.sum([each.astype(object) for _, each in pairs], axis=0)
    if max(lengths, default=0) > MAX_LENGTH:
        raise InputError(f"states of {max(lengths)} tokens cannot be merged", f"A state holds at most {MAX_LENGTH}")
    return np.stack([first, rest], axis=_PAIR_AXIS), lengths.astype(np.int64)
