"""Check a sequence's arrays against what a file takes, before anything is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.batches.interface import Interface, Sizes
from pom_export.errors import InputError, printable
from pom_export.graph.exported_model import TensorSpec
from pom_export.graph.size_expressions import size_of
from pom_export.runtime.keeping_sizes import check_sizes
from pom_export.suggestions import did_you_mean

Array = npt.NDArray[Any]
Layout = tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
"""Name, shape and type of each array of a sequence."""


class Checker:
    """Checks sequences for a file, each kind of layout once.

    Args:
        interface: the file's inputs and outputs.

    Attributes:
        sizes: the sizes of the dynamic dimensions of each kind of sequence.
    """

    sizes: list[Sizes]

    def __init__(self, interface: Interface) -> None:
        self.sizes = []
        self._interface = interface
        self._known: dict[Layout, int] = {}

    def kind(self, called: str, layout: Layout) -> int:
        """Return the kind of a sequence, an index of `sizes`.

        Args:
            called: what to call the sequence in messages.
            layout: its arrays.

        Raises:
            InputError: an array is missing, unknown or empty, has another shape or type, disagrees with another one, or
                has a size that the file does not take.
        """
        known = self._known.get(layout)
        if known is None:
            self.sizes.append(self._sizes(called, layout))
            known = self._known[layout] = len(self.sizes) - 1
        return known

    def _sizes(self, called: str, layout: Layout) -> Sizes:
        given = {name: np.broadcast_to(np.empty((), dtype), shape) for name, shape, dtype in layout}
        self._check_names(called, given)
        named = {name: self._interface.axes(self._interface.inputs[name]) for name in given}
        found: dict[str | int, int] = {}
        for name, array in given.items():
            self._check_array(called, self._interface.inputs[name], array)
            found |= dict(zip(named[name], array.shape, strict=True))
        # In the same order for every sequence.
        sizes = {axis: found[axis] for axis in self._interface.dimensions if axis in found}
        try:
            check_sizes(given, named)
        except InputError as error:
            raise InputError(f"{called}: {error.what}", error.hint) from error
        for axis, size in sizes.items():
            if allowed := self._interface.limits.outside(axis, size):
                raise InputError(f"{called}: {axis} is {size}, but {self._interface.name} takes {allowed}", "Cut it")
        lacking = [each for name in self._interface.inputs.keys() - given.keys() for each in self._unknown(name, sizes)]
        if lacking:
            raise InputError(f"{called} lacks what determines the size {lacking[0]}", "Give every input")
        return sizes

    def _unknown(self, name: str, sizes: Sizes) -> list[str]:
        axes = self._interface.axes(self._interface.inputs[name])
        return [str(axis) for axis in axes if size_of(axis, sizes) is None]

    def _check_names(self, called: str, given: Mapping[str, Array]) -> None:
        takes = f"{self._interface.name} takes {', '.join(self._interface.inputs)}"
        for name in given:
            if name not in self._interface.inputs:
                hint = did_you_mean(name, self._interface.inputs) or takes
                raise InputError(f"{called} has {printable(name)!r}, which is no input", hint)
        for name in self._interface.inputs:
            if name not in given and name not in self._interface.defaults:
                raise InputError(f"{called} lacks {name!r}; it holds {', '.join(given) or 'nothing'}", takes)

    def _check_array(self, called: str, spec: TensorSpec, array: Array) -> None:
        axes = self._interface.axes(spec)
        shape = list(array.shape)
        wanted = f"[{', '.join(map(str, axes))}]"
        fits = len(shape) == len(axes) and all(
            isinstance(axis, str) or axis == size for axis, size in zip(axes, shape, strict=True)
        )
        if not fits:
            batched = len(shape) == len(axes) + 1 and shape[0] == 1
            hint = "Leave out the batch axis: each sequence is one row" if batched else "Give it that shape"
            raise InputError(f"{called}: {spec.name} has the shape {shape}, not {wanted}", hint)
        if 0 in shape:
            raise InputError(f"{called} is empty: {spec.name} has the shape {shape}", "Leave it out")
        if _kind(array.dtype) != _kind(spec.dtype):
            raise InputError(f"{called}: {spec.name} is {array.dtype}, not {spec.dtype}", "Convert it")


def _kind(dtype: np.dtype[Any]) -> str:
    return {"i": "integer", "u": "integer", "f": "float", "b": "bool"}.get(dtype.kind, str(dtype))


def converted(called: str, spec: TensorSpec, array: Array) -> Array:
    """Return an array in an input's type.

    Raises:
        InputError: a value does not fit into the type.
    """
    if array.dtype == spec.dtype:
        return array
    try:
        with np.errstate(over="raise"):
            result = array.astype(spec.dtype)
    except FloatingPointError:
        result = None
    if result is None or (spec.dtype.kind in "iu" and not np.array_equal(result, array)):
        raise InputError(f"{called}: {spec.name} holds a number that {spec.dtype} cannot hold", "Scale it")
    return result


def check_values(called: list[str], spec: TensorSpec, rows: Array, interface: Interface) -> None:
    """Check the values of an input for the rows of a batch.

    Args:
        called: what to call each row in messages.
        spec: the input.
        rows: its values, with the rows first.
        interface: the file's limits.

    Raises:
        InputError: a value is beyond the file's, or NaN.
    """
    if spec.dtype.kind not in "biu" and (lost := np.isnan(rows)).any():
        raise InputError(f"{called[int(np.argwhere(lost)[0][0])]}: {spec.name} holds NaN", "Leave it out, or mend it")
    counts, ends = interface.limits.values.get(spec.name), interface.limits.ranges.get(spec.name)
    if counts is not None and spec.dtype.kind in "iu":
        low: Any = 0
        high: Any = np.array(counts) - 1
        allowed = " and ".join(f"0 to {count - 1}" for count in counts)
    elif ends is not None:
        low, high = ends[0], ends[-1]
        allowed = f"{low:g} to {high:g}"
    else:
        return
    outside = (rows < low) | (rows > high)
    if outside.any():
        row = int(np.argwhere(outside)[0][0])
        value = rows[row][outside[row]].flat[0]
        raise InputError(
            f"{called[row]}: {spec.name} holds {value}, but {interface.name} takes {allowed}", "Use values in range"
        )
