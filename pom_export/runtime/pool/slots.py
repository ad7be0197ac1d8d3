"""The states of many streams, a row of each array for every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.runtime.streaming.interface import StatefulModel

Array = npt.NDArray[Any]


class Slots:
    """The states of a fixed number of streams, each in a row: one array per part of the state, allocated once.

    Args:
        model: the interface, whose state has a constant size.
        count: number of rows.
    """

    def __init__(self, model: StatefulModel, count: int) -> None:
        self._rows = model.empty(count)
        self._past = {name: np.empty_like(array) for name, array in self._rows.items()}
        self._present = {part.present: np.empty_like(self._rows[part.spec.name]) for part in model.past}
        self._names = {part.present: part.spec.name for part in model.past}

    @property
    def row_bytes(self) -> int:
        """Size of one stream's state in bytes."""
        return sum(array[:1].nbytes for array in self._rows.values())

    def gather(self, rows: Array) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return the states of some rows side by side, by input, and as many empty rows for what follows, by output.

        Both are in buffers that the next call of `gather` overwrites.
        """
        count = len(rows)
        for name, array in self._rows.items():
            # With mode="raise", NumPy would write to a buffer of its own first.
            np.take(array, rows, axis=0, out=self._past[name][:count], mode="clip")
        past = {name: array[:count] for name, array in self._past.items()}
        return past, {name: array[:count] for name, array in self._present.items()}

    def scatter(self, present: Mapping[str, Array], places: Array, rows: Array) -> None:
        """Copy what followed, at some places of the arrays that `gather` returned, into rows."""
        for name, array in present.items():
            self._rows[self._names[name]][rows] = array if len(places) == len(array) else array[places]

    def clear(self, row: int) -> None:
        """Set a row to the state before the first token."""
        for array in self._rows.values():
            array[row] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy a row over another."""
        for array in self._rows.values():
            array[target] = array[source]

    def read(self, row: int) -> dict[str, Array]:
        """Return a copy of a row's state by input, each array (1, ...)."""
        return {name: array[row : row + 1].copy() for name, array in self._rows.items()}

    def write(self, row: int, state: Mapping[str, Array]) -> None:
        """Set a row to a state, as `read` returns it."""
        for name, array in self._rows.items():
            array[row] = state[name][0]
