"""Check the inputs of a streaming call, since invalid ones would corrupt the state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.graph.exported_model import (
    BATCH,
    PAST_CONTEXT,
    PAST_LENGTH,
    PAST_TOKENS,
    TOKENS,
    InputLimits,
    TensorSpec,
)
from pom_export.runtime.streaming.interface import MASK, StatefulModel

Array = npt.NDArray[Any]


def call_tokens(model: StatefulModel, given: Any, batch: int) -> Array:
    """Return a call's tokens (batch, tokens) or (batch, tokens, d), at least one per row, in the model's type.

    Args:
        model: the interface.
        given: the tokens; with a single row, the batch axis may be missing.
        batch: number of rows.

    Raises:
        InputError: they have another shape or type, or contain ids that the model does not have.
    """
    array = np.asarray(given)
    if batch == 1 and array.ndim == len(model.tokens.axes) - 1:
        array = array[np.newaxis]
    return checked(model.tokens, array, {BATCH: batch}, model.limits)


def step_tokens(model: StatefulModel, given: Any, batch: int) -> Array:
    """Return one token per row, (batch, 1) or (batch, 1, d), as `call_tokens` does; `given` may lack either axis."""
    array = np.asarray(given)
    rank = len(model.tokens.axes)
    if batch == 1 and array.ndim == rank - 2:
        array = array[np.newaxis]
    if array.ndim == rank - 1:
        array = array[:, np.newaxis]
    return checked(model.tokens, array, {BATCH: batch, TOKENS: 1}, model.limits)


def call_mask(model: StatefulModel, mask: Any, lengths: Any, batch: int, tokens: int) -> Array | None:
    """Return which tokens of a call are valid, (batch, tokens) bool; None if all are and the model takes no mask.

    Raises:
        InputError: the model has no such input, or the mask or the lengths don't fit.
    """
    if mask is not None and lengths is not None:
        raise InputError("mask and lengths are both given", "Give one of them")
    if model.mask is None:
        if mask is None and lengths is None:
            return None
        raise InputError(f"{model.name} takes no mask", "Give rows of one length, or export it with a mask")
    if lengths is not None:
        counts = _counts(lengths, batch, tokens)
        return np.arange(tokens) < counts[:, np.newaxis]
    if mask is None:
        return np.ones((batch, tokens), np.bool_)
    array = np.asarray(mask)
    if array.ndim == 1 and tokens == 1:
        array = array[:, np.newaxis]
    array = checked(model.mask, array, {BATCH: batch, TOKENS: tokens}, InputLimits())
    if model.ordered and (array[:, 1:] > array[:, :-1]).any():
        raise InputError("mask leaves out tokens before others that it keeps", "Put padding at the end of a row")
    return array


def _counts(lengths: Any, batch: int, tokens: int) -> Array:
    counts = np.asarray(lengths)
    if counts.shape != (batch,) or counts.dtype.kind not in "iu":
        raise InputError(f"lengths must be {batch} whole numbers, got {lengths!r}", "Give one per row")
    if (counts < 0).any() or (counts > tokens).any():
        raise InputError(f"lengths must be 0 to {tokens}, got {counts.tolist()}", "Count the tokens before the padding")
    return counts


def call_others(
    model: StatefulModel, given: Mapping[str, Any], batch: int, tokens: int, *, begun: bool
) -> dict[str, Array]:
    """Return a call's other inputs, by name.

    Args:
        model: the interface.
        given: the inputs that the caller gives.
        batch: number of rows.
        tokens: number of tokens in the call.
        begun: whether there was an earlier call, which got the context.

    Raises:
        InputError: an input is missing or unknown, or does not fit.
    """
    if begun and (again := sorted(model.contexts & given.keys())):
        raise InputError(f"{again[0]} was given in the first call, and what it gave is kept", "Leave it out, or reset")
    needed = model.others.keys() - (model.contexts if begun else frozenset())
    unknown, missing = sorted(given.keys() - needed), sorted(needed - given.keys())
    if unknown or missing:
        names = ", ".join([model.tokens.name, *([MASK] if model.mask else []), *model.others])
        what = f"{unknown[0]} is no input of" if unknown else f"{missing[0]} is missing from"
        raise InputError(f"{what} a call of {model.name}", f"It takes {names}")
    sizes = {BATCH: batch, TOKENS: tokens}
    return {
        name: checked(spec, np.asarray(given[name]), sizes, model.limits) if name in given else _absent(spec, batch)
        for name, spec in model.others.items()
    }


def _absent(spec: TensorSpec, batch: int) -> Array:
    """Return a context without tokens."""
    shape = [axis if isinstance(axis, int) else batch if axis == BATCH else 0 for axis in spec.axes]
    return np.zeros(shape, spec.dtype)


def call_part(model: StatefulModel, given: Mapping[str, Any], start: int, stop: int) -> dict[str, Any]:
    """Return the other inputs of one of several calls, for the tokens from `start` to `stop`.

    What has an entry for each token is cut, and a context is for the first call alone.
    """
    part = {}
    for name, value in given.items():
        axes = model.others[name].axes if name in model.others else ()
        if start and name in model.contexts:
            continue
        part[name] = np.asarray(value).take(range(start, stop), axes.index(TOKENS)) if TOKENS in axes else value
    return part


def fitting_state(model: StatefulModel, given: Mapping[str, Array], batch: int) -> dict[str, Array]:
    """Return the arrays of a state by input.

    Raises:
        InputError: an array is missing, has another shape or type, contains a non-finite number or does not fit the
            lengths, or a length exceeds the model's positions.
    """
    sizes = {BATCH: batch}
    arrays = {}
    for part in model.past:
        name, spec = part.spec.name, part.spec
        array = given.get(name)
        if array is None or array.dtype != spec.dtype or array.ndim != len(spec.axes):
            raise InputError(f"the state has no {spec}", f"Take a state of {model.name}")
        wanted = [
            axis if isinstance(axis, int) else sizes.setdefault(axis, n)
            for axis, n in zip(spec.axes, array.shape, strict=True)
        ]
        if list(array.shape) != wanted:
            raise InputError(
                f"the state's {name} has the shape {list(array.shape)}, not {wanted}", "It may belong to another batch"
            )
        if not _all_finite(array, masked=name.startswith(f"{PAST_CONTEXT}.")):
            raise InputError(f"the state's {name} holds a number that is not finite", "Is it damaged?")
        arrays[name] = np.ascontiguousarray(array)
    lengths = arrays[PAST_LENGTH]
    if (lengths < 0).any() or (lengths > model.positions).any():
        raise InputError(f"the state's lengths {lengths.tolist()} exceed the model's positions", "Is it damaged?")
    _check_caches(model, arrays)
    return arrays


def _all_finite(array: Array, *, masked: bool) -> bool:
    """Return whether all numbers are finite; if it may be a mask, -inf counts as finite."""
    if array.dtype.kind in "iub":
        return True
    # A sum reads the array once without allocating another; only if it overflows is each number checked.
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float64)
    return bool(np.isfinite(total)) or bool((np.isfinite(array) | (masked & np.isneginf(array))).all())


def _check_caches(model: StatefulModel, arrays: Mapping[str, Array]) -> None:
    """Check that caches that grow with every token have as many entries as the longest row, or more with a mask."""
    longest = int(arrays[PAST_LENGTH].max())
    for part in model.past:
        array = arrays[part.spec.name]
        sizes = [n for axis, n in zip(part.spec.axes, array.shape, strict=True) if axis == PAST_TOKENS]
        if any(size < longest or (size > longest and model.mask is None) for size in sizes):
            raise InputError(
                f"the state's {part.spec.name} holds {sizes[0]} tokens, but its lengths are {longest}", "Is it damaged?"
            )


def checked(spec: TensorSpec, array: Array, sizes: Mapping[str, int], limits: InputLimits) -> Array:
    """Return an array as an input's type, contiguous.

    Args:
        spec: the input.
        array: the given array.
        sizes: sizes of dynamic dimensions by name; other dimensions may have any size.
        limits: limits on the model's inputs.

    Raises:
        InputError: it has another shape, an incompatible type, values beyond the limits, or NaN or infinity.
    """
    wanted = [axis if isinstance(axis, int) else sizes.get(axis, axis) for axis in spec.axes]
    fits = array.ndim == len(wanted) and all(
        isinstance(size, str) or size == found for size, found in zip(wanted, array.shape, strict=True)
    )
    if not fits or 0 in array.shape:
        shape = ", ".join(map(str, wanted))
        hint = "No axis may be empty" if 0 in array.shape else "Give it that shape"
        raise InputError(f"{spec.name} has the shape {list(array.shape)}, not [{shape}]", hint)
    for axis, size in zip(spec.axes, array.shape, strict=True):
        if axis in limits.sizes and (allowed := limits.outside(str(axis), size)):
            raise InputError(f"{axis} is {size} in {spec.name}, but the model takes {allowed}", "Give other sizes")
    if not _same_kind(array.dtype, spec.dtype):
        raise InputError(f"{spec.name} is {array.dtype}, not {spec.dtype}", "Convert it")
    if spec.name in limits.values and array.dtype.kind in "iu":
        most = np.array(limits.values[spec.name])
        if array.min() < 0 or (array >= most).any():
            outside = (array < 0) | (array >= most)
            value, counts = array[outside][0], "x".join(map(str, most.tolist()))
            raise InputError(f"{spec.name} holds {value}, beyond the model's {counts} values", "They count from 0")
    with np.errstate(over="ignore"):
        typed = np.ascontiguousarray(array, spec.dtype)
    if not _all_finite(typed, masked=spec.axes[1:2] != (TOKENS,)):
        raise InputError(
            f"{spec.name} holds a number that is not finite in {spec.dtype}", "Give others: a state would keep it"
        )
    return typed


def _same_kind(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Return whether values of one type may be converted to the other; bfloat16 counts as a float."""
    kinds = [{"i": "integer", "u": "integer", "b": "bool"}.get(kind, "float") for kind in (given.kind, wanted.kind)]
    return kinds[0] == kinds[1] and given.kind not in "OSUcMm"
