"""The states of many streams, a row of each array for every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.runtime.streaming.interface import StatefulModel

Array = npt.NDArray[Any]

# The place of a row that is not in the batch.
_HOME: Final = -1


class Slots:
    """The states of a fixed number of streams, each in a row: one array per part of the state, allocated once.

    The rows that take steps, call after call, stay side by side between the calls: in two banks, of which a call reads
    one and writes to the other. Only the states of those that join them and leave them are copied. For calls of other
    rows, states are gathered, and what follows them is scattered.

    Args:
        model: the interface, whose state has a constant size.
        count: number of rows.
    """

    def __init__(self, model: StatefulModel, count: int) -> None:
        self._present = {part.present: part.spec.name for part in model.past}
        self._home = model.empty(count)
        self._banks = [{name: np.empty_like(array) for name, array in self._home.items()} for _ in range(2)]
        self._following = {name: np.empty_like(array) for name, array in self._home.items()}
        self._now = 0
        # The batch: its rows in order, and each row's place in it. That of a row which has left since is another.
        self._batch = np.empty(0, np.intp)
        self._places = np.full(count, _HOME, np.intp)

    @property
    def row_bytes(self) -> int:
        """Size of one stream's state in bytes."""
        return sum(array[:1].nbytes for array in self._home.values())

    @property
    def bank(self) -> int:
        """Which of the banks the batch's states are in."""
        return self._now

    def line_up(self, wanted: Array) -> Array:
        """Make the batch of some rows.

        Args:
            wanted: (rows,) bool, which ones.

        Returns:
            The rows in the batch's order, which is that of before as far as possible.
        """
        places = np.arange(len(self._batch))
        present = self._places[self._batch] == places
        stays = present & wanted[self._batch]
        joining = np.flatnonzero(wanted & (self._places == _HOME))
        if stays.all() and not len(joining):
            return self._batch
        self._send_home(places[present & ~stays])
        count = int(stays.sum()) + len(joining)
        batch = np.full(count, _HOME, np.intp)
        remaining = places[stays & (places < count)]
        moving = places[stays & (places >= count)]
        batch[remaining] = self._batch[remaining]
        gaps = np.flatnonzero(batch == _HOME)
        to_moving, to_joining = gaps[: len(moving)], gaps[len(moving) :]
        batch[to_moving], batch[to_joining] = self._batch[moving], joining
        for name, array in self._banks[self._now].items():
            array[to_moving] = array[moving]
            array[to_joining] = self._home[name][joining]
        self._batch = batch
        self._places[batch] = np.arange(count)
        return batch

    def batch(self) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return the batch's states, by input, and where what follows them belongs, by output.

        For one number of rows and one bank, they are always in the same memory.
        """
        count, following = len(self._batch), self._banks[1 - self._now]
        past = {name: array[:count] for name, array in self._banks[self._now].items()}
        return past, {present: following[name][:count] for present, name in self._present.items()}

    def step(self) -> None:
        """Continue with the states that follow those of the batch."""
        self._now = 1 - self._now

    def gather(self, rows: Array) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return the states of some rows side by side, by input, and as many empty rows for what follows, by output.

        Both are in buffers that the next call of `gather` or of the batch overwrites.
        """
        places = self._places[rows]
        self._send_home(places[places != _HOME])
        count, past = len(rows), self._banks[1 - self._now]
        for name, array in self._home.items():
            # With mode="raise", NumPy would write to a buffer of its own first.
            np.take(array, rows, axis=0, out=past[name][:count], mode="clip")
        following = {present: self._following[name][:count] for present, name in self._present.items()}
        return {name: array[:count] for name, array in past.items()}, following

    def scatter(self, following: Mapping[str, Array], places: Array, rows: Array) -> None:
        """Copy what followed, at some places of the arrays that `gather` returned, into rows."""
        for present, array in following.items():
            self._home[self._present[present]][rows] = array if len(places) == len(array) else array[places]

    def clear(self, row: int) -> None:
        """Set a row to the state before the first token."""
        self._places[row] = _HOME
        for array in self._home.values():
            array[row] = 0

    def copy(self, source: int, target: int) -> None:
        """Copy a row over another."""
        self.write(target, self._state(source))

    def read(self, row: int) -> dict[str, Array]:
        """Return a copy of a row's state by input, each array (1, ...)."""
        return {name: array.copy() for name, array in self._state(row).items()}

    def write(self, row: int, state: Mapping[str, Array]) -> None:
        """Set a row to a state, as `read` returns it."""
        self._places[row] = _HOME
        for name, array in self._home.items():
            array[row] = state[name][0]

    def _state(self, row: int) -> dict[str, Array]:
        place = self._places[row]
        arrays, at = (self._home, row) if place == _HOME else (self._banks[self._now], int(place))
        return {name: array[at : at + 1] for name, array in arrays.items()}

    def _send_home(self, places: Array) -> None:
        """Take those at some places out of the batch."""
        if not len(places):
            return
        rows = self._batch[places]
        for name, array in self._home.items():
            array[rows] = self._banks[self._now][name][places]
        self._places[rows] = _HOME
