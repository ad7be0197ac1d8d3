"""Run some of the sequences of a source, by index: what a process does for a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pom_export.batches.calling import Caller, Outputs, Room, Row
from pom_export.batches.checking import Checker
from pom_export.batches.interface import Interface
from pom_export.batches.sources import Source


class Worker:
    """Runs batches of sequences.

    Args:
        session: the onnxruntime.InferenceSession.
        interface: its interface.
        source: the sequences.
        room: makes the arrays for outputs that come in pieces.

    Attributes:
        caller: runs the file.
        sizes: the sizes of the dimensions of each kind of sequence that was checked.
    """

    def __init__(self, session: Any, interface: Interface, source: Source, room: Room = np.empty) -> None:
        self.caller = Caller(session, interface, room)
        self._source = source
        self._checker = Checker(interface)
        self.sizes = self._checker.sizes
        self._shared = [name for name, spec in interface.inputs.items() if interface.batch_axis(spec) is None]

    def kind(self, index: int) -> int:
        """Check a sequence, and return its kind: an index of `sizes`.

        Raises:
            InputError: it does not fit the file.
        """
        return self._checker.kind(self._source.called(index), self._source.layout(index))

    def outputs(self, batch: Sequence[int]) -> Iterator[tuple[int, Outputs]]:
        """Yield the index and the outputs of each sequence of a batch.

        Raises:
            InputError: a value is beyond the file's limits, or ONNX Runtime failed.
        """
        rows = [Row(self._source.called(i), self._source.arrays(i), self.sizes[self.kind(i)]) for i in batch]
        for group in self._groups(rows):
            outputs = self.caller.call([rows[place] for place in group])
            yield from ((batch[place], each) for place, each in zip(group, outputs, strict=True))

    def _groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """Divide rows into those that agree in the inputs that all rows of a call share, such as positions."""
        if not self._shared:
            return [list(range(len(rows)))]
        groups: list[list[int]] = []
        for place, row in enumerate(rows):
            fitting = (group for group in groups if all(_agree(rows[group[0]], row, name) for name in self._shared))
            group = next(fitting, None)
            if group is None:
                groups.append([place])
            else:
                group.append(place)
        return groups


def _agree(longer: Row, row: Row, name: str) -> bool:
    """Return whether a row's array is the beginning of that of a row that is at least as long."""
    if name not in longer.arrays or name not in row.arrays:
        return name not in longer.arrays and name not in row.arrays
    first, array = longer.arrays[name], row.arrays[name]
    if any(size > room for size, room in zip(array.shape, first.shape, strict=True)):
        return False
    return np.array_equal(first[tuple(map(slice, array.shape))], array)
