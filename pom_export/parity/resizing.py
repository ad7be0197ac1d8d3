"""Resize a user's example inputs by repeating and cutting them, since only the author knows what values mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pom_export.graph.claims import Bounds
from pom_export.graph.size_expressions import root_of, size_of
from pom_export.parity.case import Array

# The axes of each input: names of dynamic dimensions, expressions such as "tokens + 1", or sizes.
AxesByInput = Mapping[str, Sequence[int | str]]


def dimension_sizes(feed: Mapping[str, Array], axes: AxesByInput) -> dict[str, int]:
    """Return the size of each name that the inputs' dynamic dimensions have or are computed from.

    Names whose size cannot be determined are left out.
    """
    given = [(str(axis), size) for name in axes for axis, size in zip(axes[name], feed[name].shape, strict=True)]
    sizes = {axis: size for axis, size in given if axis.isidentifier()}
    for axis, size in given:
        if found := root_of(axis, size):
            sizes.setdefault(*found)
    return sizes


def candidate_sizes(size: int, bounds: Bounds) -> list[int]:
    """Return the sizes at which to try a dimension: the smallest, the next one, and one far from the example's.

    Two neighbouring sizes are not both multiples of a number, so a graph that only works for multiples is found out.
    """
    low, high = max(bounds[0], 1), bounds[1]
    sizes = [low, size + 1, 2 * size + 3]
    if high is not None:
        sizes = [min(each, high) for each in sizes]
        if high <= size:
            sizes += [size - 1, size // 2]
    return sorted({each for each in sizes if each >= low} - {size})


def resized(feed: Mapping[str, Array], axes: AxesByInput, sizes: Mapping[str, int]) -> dict[str, Array] | None:
    """Return inputs at other sizes; None if an axis would get a negative or an unknown size.

    Args:
        feed: the example inputs.
        axes: the axes of each input.
        sizes: the sizes of all names of dynamic dimensions.
    """
    result = {}
    for name, given in feed.items():
        array = given
        for index, axis in enumerate(axes[name]):
            size = size_of(axis, sizes)
            if size is None or size < 0:
                return None
            if size != array.shape[index]:
                array = _along(array, index, size)
        result[name] = array
    return result


def other_values(feed: Mapping[str, Array], axes: AxesByInput) -> Iterator[dict[str, Array]]:
    """Yield inputs of the same sizes and kinds with values other than the given ones, the most different first.

    An example proves little if all of its rows are the same, it is zero or it masks nothing. Floats are shuffled token
    by token, and each row gets a scale of its own. Booleans are drawn so that wherever there are two, one is true and
    one false. Integers are moved to other rows if their rows correspond to those of other inputs.

    Args:
        feed: the inputs.
        axes: the axes of each input.
    """
    rows = {axes[name][0] for name, array in feed.items() if array.ndim > 1}
    for first in (True, False, None):
        random = np.random.default_rng(0)
        yield {
            name: _other(array, bool(array.ndim and axes[name][0] in rows), first, random)
            for name, array in feed.items()
        }


def _other(array: Array, of_rows: bool, first: bool | None, random: np.random.Generator) -> Array:
    """Return other values for an input.

    Args:
        array: the input's values.
        of_rows: whether its first axis is that of the rows.
        first: for booleans: the first value of each line; None: they are not changed.
        random: the random generator.
    """
    if array.dtype == np.bool_ and array.ndim and first is not None:
        drawn = random.random(array.shape) < 0.6
        drawn[..., :1], drawn[..., 1:2] = first, not first
        return drawn
    if array.dtype.kind in "iu":
        return random.permutation(array) if of_rows else array
    if array.dtype.kind != "f":
        return array
    if array.size > 1 and (array == array.flat[0]).all():
        array = array + random.uniform(-1, 1, array.shape).astype(array.dtype)
    lines = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1)
    shuffled = random.permutation(lines).reshape(array.shape)
    return (shuffled * _scales(array)).astype(array.dtype)


def _scales(array: Array) -> Array:
    """Return a factor for each row, between 0.5 and 1."""
    count = array.shape[0] if array.ndim else 1
    factors = np.linspace(0.75 if count == 1 else 1.0, 0.5, count)
    return factors.reshape(-1, *[1] * (array.ndim - 1)) if array.ndim else factors[0]


def _along(array: Array, axis: int, size: int) -> Array:
    """Repeat or cut an array along an axis; a mask's row that kept some of its tokens still keeps one."""
    if not array.shape[axis]:
        return np.zeros((*array.shape[:axis], size, *array.shape[axis + 1 :]), array.dtype)
    result = array.take(range(size), axis=axis, mode="wrap")
    kept = _kept(array)
    if kept is not None and size:
        lost = kept.any(axis) & ~kept.take(range(size), axis=axis, mode="wrap").any(axis)
        # In a mask, float or bool, a row that lost all of its kept tokens gets one of them at its first position.
        first = np.take_along_axis(array, kept.argmax(axis, keepdims=True), axis).squeeze(axis)
        place = (slice(None),) * axis + (0,)
        result[place] = np.where(lost, first, result[place])
    return result


def _kept(array: Array) -> Array | None:
    """Return which positions a mask keeps; None if the array is not a mask."""
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind == "f" and np.isneginf(array).any():
        return ~np.isneginf(array)
    return None


def meanings(feed: Mapping[str, Array], before: int, after: int) -> Iterator[Mapping[str, Array]]:
    """Yield resized inputs unchanged, then with integers adapted to the new size as lengths, and as indices.

    Args:
        feed: resized inputs.
        before: the old size.
        after: the new size.
    """
    yield feed
    whole = {name: array for name, array in feed.items() if array.dtype.kind in "iu"}
    if not whole:
        return
    for most in (after, max(after - 1, 0)):
        fitting = {name: np.minimum(np.where(a == before, after, a), most).astype(a.dtype) for name, a in whole.items()}
        yield {**feed, **fitting}
