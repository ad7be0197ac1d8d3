"""A test case: named inputs, passed in one call or in several that continue from each other's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from pom_export.graph.exported_model import is_past, present_name

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
_TOKEN_AXIS = 1
_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True)
class Case:
    """Named inputs, and how to use them.

    Attributes:
        name: name of the case in a report.
        feed: the inputs by name.
        cuts: positions at which the tokens are split into calls, each of which continues from the state of the previous
            one; empty: a single call.
        token_axes: for a case with several calls, the axis of the tokens, by input.
        one_pass: whether the calls give the same as one pass over all tokens, as in causal models.
        partial: whether to skip elements that are NaN in the reference.
        once: inputs that only the first call gets, with the axis that is empty in the others.
    """

    name: str
    feed: Arrays
    cuts: tuple[int, ...] = ()
    token_axes: Mapping[str, int] = field(default_factory=dict)
    one_pass: bool = True
    partial: bool = False
    once: Mapping[str, int] = field(default_factory=dict)


def widened(case: Case) -> Case:
    """Return the case with half-precision inputs as float32, which also makes the state between calls float32."""
    feed = {name: array.astype(np.float32) if array.dtype in _HALVES else array for name, array in case.feed.items()}
    return replace(case, feed=feed)


def run_case(infer: Callable[[Arrays], Arrays], case: Case) -> dict[str, Array]:
    """Return a case's outputs. For several calls, these are the tokens' outputs joined, and the last state."""
    if not case.cuts:
        return dict(infer(case.feed))
    tokens = next(case.feed[name].shape[axis] for name, axis in case.token_axes.items())
    past = {name: array for name, array in case.feed.items() if is_past(name)}
    presents = {present_name(name) for name in past}
    parts: dict[str, list[Array]] = {}
    outputs: Arrays = {}
    for start, stop in pairwise((0, *case.cuts, tokens)):
        call = {name: case.feed[name].take(range(start, stop), axis) for name, axis in case.token_axes.items()}
        if start:
            call |= {name: case.feed[name].take(range(0), axis) for name, axis in case.once.items()}
        outputs = infer({**case.feed, **past, **call})
        # Copied, since a runner may overwrite these with the next call's outputs.
        past = {
            name: np.array(outputs[present_name(name)]).astype(array.dtype, copy=False) for name, array in past.items()
        }
        for name in outputs.keys() - presents:
            parts.setdefault(name, []).append(np.array(outputs[name]))
    joined = {name: np.concatenate(arrays, axis=_TOKEN_AXIS) for name, arrays in parts.items()}
    return {name: joined.get(name, np.asarray(array)) for name, array in outputs.items()}
