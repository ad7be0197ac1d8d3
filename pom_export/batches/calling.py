"""One call of a file for a batch of sequences: stack and pad them, run, cut the outputs apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pom_export.batches.checking import check_values, converted
from pom_export.batches.interface import Array, Interface, Sizes
from pom_export.errors import InputError, PomExportError, reason_of
from pom_export.graph.dimensions import TOKENS
from pom_export.graph.exported_model import TensorSpec, present_name
from pom_export.graph.size_expressions import size_of

PIECE: Final = 2048
"""Tokens in each call for a long sequence through a state: enough for full speed, few enough to save memory."""

Outputs = dict[str, Array]
# Returns an uninitialized array of a shape and a type.
Room = Callable[[Sequence[int], np.dtype[Any]], Array]


@dataclass(frozen=True)
class Row:
    """A sequence that was checked.

    Attributes:
        called: what to call it in messages.
        arrays: its arrays by input, without those that it lacks.
        sizes: the sizes of its dynamic dimensions.
    """

    called: str
    arrays: Mapping[str, Array]
    sizes: Sizes


class Caller:
    """Runs batches of sequences through a session.

    Args:
        session: the onnxruntime.InferenceSession.
        interface: its interface.
        room: makes the arrays for outputs that come in pieces.
    """

    def __init__(self, session: Any, interface: Interface, room: Room = np.empty) -> None:
        self._session = session
        self._interface = interface
        self._room = room
        self._presents = [present_name(name) for name in interface.past]
        self._whole = self._windows_of({})
        self._windows: dict[tuple[int, ...], list[tuple[str, int | None, tuple[slice, ...]]]] = {}

    def call(self, rows: Sequence[Row]) -> list[Outputs]:
        """Return the outputs of each row, in order, as one call for that row alone would give them.

        Args:
            rows: at least one. Their dimensions may differ only in what padding does not change, and the inputs that
                all rows share are equal as far as both go.

        Raises:
            InputError: a value is beyond the file's limits, or ONNX Runtime failed.
        """
        sizes = {axis: max(row.sizes[axis] for row in rows) for axis in rows[0].sizes}
        if self._interface.causal_state and sizes.get(TOKENS, 0) > PIECE:
            return self._call_in_pieces(rows, sizes)
        computed = self._run(self._feed(rows, sizes), self._interface.empty_past(self._count(rows)), rows)
        return [self._cut(computed, place, row.sizes, sizes) for place, row in enumerate(rows)]

    def _call_in_pieces(self, rows: Sequence[Row], sizes: Sizes) -> list[Outputs]:
        """Run the tokens in pieces through the state, each for the rows that have tokens left."""
        order = sorted(range(len(rows)), key=lambda place: -rows[place].sizes[TOKENS])
        specs = self._interface.outputs
        results = [
            {name: self._room(self._interface.shape(spec, row.sizes), spec.dtype) for name, spec in specs.items()}
            for row in rows
        ]
        past = self._interface.empty_past(self._count(rows))
        for start in range(0, sizes[TOKENS], PIECE):
            left = [place for place in order if rows[place].sizes[TOKENS] > start]
            part = {**sizes, TOKENS: min(PIECE, sizes[TOKENS] - start)}
            if isinstance(self._interface.batch, str):
                past = {name: self._first_rows(name, array, len(left)) for name, array in past.items()}
            active = [rows[place] for place in left]
            computed = self._run(self._feed(active, part, start), past, active)
            past = {name: computed[present] for name, present in zip(past, self._presents, strict=True)}
            for at, place in enumerate(left):
                own = {**rows[place].sizes, TOKENS: min(part[TOKENS], rows[place].sizes[TOKENS] - start)}
                for name, array in self._cut(computed, at, own, part).items():
                    axis = self._interface.axes(specs[name]).index(TOKENS)
                    window = (*[slice(None)] * axis, slice(start, start + own[TOKENS]))
                    results[place][name][window] = array
        return results

    def _first_rows(self, name: str, array: Array, count: int) -> Array:
        axis = self._interface.batch_axis(self._interface.past[name])
        if axis is None or array.shape[axis] == count:
            return array
        return array[(*[slice(None)] * axis, slice(count))]

    def _count(self, rows: Sequence[Row]) -> int:
        return self._interface.batch if isinstance(self._interface.batch, int) else len(rows)

    def _feed(self, rows: Sequence[Row], sizes: Sizes, start: int = 0) -> dict[str, Array]:
        """Return the inputs of a call with the tokens from `start` on, padded to the given sizes."""
        rows = [*rows, *[rows[-1]] * (self._count(rows) - len(rows))]
        feed = {}
        for name, spec in self._interface.inputs.items():
            axis = self._interface.batch_axis(spec)
            own = rows if axis is not None else [self._longest(spec, rows)]
            stacked = self._stacked(spec, own, sizes, start)
            check_values([row.called for row in own], spec, stacked, self._interface)
            feed[name] = stacked[0] if axis is None else np.moveaxis(stacked, 0, axis) if axis else stacked
        return feed

    def _stacked(self, spec: TensorSpec, rows: Sequence[Row], sizes: Sizes, start: int) -> Array:
        """Return an input for some rows, which come first, with the tokens from `start` on."""
        stacked = np.zeros((len(rows), *self._interface.shape(spec, sizes)), spec.dtype)
        is_mask = self._interface.is_mask(spec.name)
        for index, row in enumerate(rows):
            place = stacked[index, ...]  # an array, even if it has no axes
            array = self._window(spec, row, start, sizes)
            if array is None:  # a mask that keeps every token
                left = {**row.sizes, TOKENS: min(sizes[TOKENS], row.sizes[TOKENS] - start)} if start else row.sizes
                place[tuple(map(slice, self._interface.shape(spec, left)))] = 1
            else:
                _place(converted(row.called, spec, array), place, padded=not is_mask)
        return stacked

    def _longest(self, spec: TensorSpec, rows: Sequence[Row]) -> Row:
        return max(rows, key=lambda row: math.prod(self._interface.shape(spec, row.sizes)))

    def _window(self, spec: TensorSpec, row: Row, start: int, sizes: Sizes) -> Array | None:
        array = row.arrays.get(spec.name)
        axes = self._interface.axes(spec)
        if array is None or TOKENS not in axes or array.shape[axes.index(TOKENS)] <= sizes[TOKENS]:
            return array
        return array[(*[slice(None)] * axes.index(TOKENS), slice(start, start + sizes[TOKENS]))]

    def _run(self, feed: dict[str, Array], past: Mapping[str, Array], rows: Sequence[Row]) -> Outputs:
        names = [*self._interface.outputs, *self._presents]
        try:
            return dict(zip(names, self._session.run(names, {**feed, **past}), strict=True))
        except PomExportError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base class
            called = rows[0].called if len(rows) == 1 else f"{rows[0].called} and {len(rows) - 1} more"
            raise InputError(
                f"ONNX Runtime cannot run {self._interface.name} on {called}: {reason_of(error)}",
                "If memory is short, give fewer tokens per call",
            ) from error

    def _cut(self, computed: Outputs, place: int, own: Sizes, padded: Sizes) -> Outputs:
        """Return one row's outputs without padding."""
        if own is padded or own == padded:
            windows = self._whole
        else:
            key = tuple(own.values())
            windows = self._windows.get(key) or self._windows.setdefault(key, self._windows_of(own))
        result = {}
        for name, axis, after in windows:
            array = computed[name] if not axis else np.moveaxis(computed[name], axis, 0)
            window: tuple[Any, ...] = after if axis is None else (place, *after)
            result[name] = array[window]
        return result

    def _windows_of(self, sizes: Sizes) -> list[tuple[str, int | None, tuple[slice, ...]]]:
        """Return each output, its axis of the batch, and the part of the other axes that has the given sizes."""
        return [
            (name, self._interface.batch_axis(spec), tuple(slice(size_of(axis, sizes)) for axis in axes))
            for name, spec in self._interface.outputs.items()
            for axes in [self._interface.axes(spec)]
        ]


def _place(array: Array, place: Array, *, padded: bool) -> None:
    """Copy an array into a place of at least its size, and repeat its last values in the rest if `padded`.

    Padding that looks like the data cannot make NaN of what a mask multiplies by 0, as zeros could.
    """
    if array.shape == place.shape:
        place[...] = array
        return
    place[tuple(map(slice, array.shape))] = array
    for axis, size in enumerate(array.shape if padded else ()):
        if size < place.shape[axis]:
            before = (slice(None),) * axis
            place[(*before, slice(size, None))] = place[(*before, slice(size - 1, size))]
