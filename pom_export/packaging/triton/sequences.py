"""Triton's sequences as streams of a pool: what one call of `execute` brings goes through the model together."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from pom_export.errors import InputError, printable
from pom_export.runtime.pool.pool import CallError, StreamPool
from pom_export.runtime.pool.stream import PoolStream

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Piece:
    """The next tokens of a sequence.

    Attributes:
        sequence: its id.
        tokens: ids (tokens,), or vectors (tokens, d); a leading axis of 1 is allowed.
        start: whether the sequence begins here, also if there is one of that id.
        end: whether it ends here.
        every: whether the output of every token is wanted, instead of the last one's.
    """

    sequence: Hashable
    tokens: Array
    start: bool = False
    end: bool = False
    every: bool = True


class Sequences:
    """Runs the pieces of many sequences through a pool.

    A server that drops a sequence which has been idle says so to nobody. So if the pool is full when a sequence begins,
    the one that was given nothing for longest is dropped: a server that holds at most as many sequences as the pool has
    streams has dropped it.

    A piece that cannot be read ends its sequence. Pieces that a client has sent after it would otherwise continue from
    a state without it.

    Args:
        pool: the pool, which is used for nothing else.
    """

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool
        # The one that was given nothing for longest comes first.
        self._streams: dict[Hashable, PoolStream] = {}

    def read(self, pieces: Sequence[Piece]) -> list[Array | InputError]:
        """Read pieces, and return for each the outputs: (tokens, ...) of every token, or (...) of the last one.

        A piece that cannot be read has its error instead, and harms no other.
        """
        answers: dict[int, Array | InputError] = {}
        given: dict[PoolStream, int] = {}
        for place, piece in enumerate(pieces):
            if self._streams.get(piece.sequence) in given:  # two pieces of one sequence are read one after the other
                self._finish(pieces, given, answers)
            try:
                stream = self._stream(piece)
                stream.give(piece.tokens, every=piece.every)
            except InputError as error:
                answers[place] = error
                self._close(piece.sequence)
            else:
                given[stream] = place
        self._finish(pieces, given, answers)
        return [answers[place] for place in range(len(pieces))]

    def _stream(self, piece: Piece) -> PoolStream:
        """Return a piece's stream, which is now the one that was given something last."""
        stream = self._opened(piece.sequence) if piece.start else self._streams.pop(piece.sequence, None)
        if stream is None:
            name = printable(str(piece.sequence), 100)
            raise InputError(f"sequence {name} is not open: it has ended, or failed, or was idle", "Start it anew")
        self._streams[piece.sequence] = stream
        return stream

    def _opened(self, sequence: Hashable) -> PoolStream:
        """Return a new stream for a sequence, in the place of its old one or of the idlest, if there is no other."""
        self._close(sequence)
        metrics = self._pool.metrics()
        if metrics.streams == metrics.most_streams:
            self._close(next(iter(self._streams)))
        return self._pool.open()

    def _close(self, sequence: Hashable) -> None:
        stream = self._streams.pop(sequence, None)
        if stream is not None:
            stream.close()

    def _finish(
        self, pieces: Sequence[Piece], given: dict[PoolStream, int], answers: dict[int, Array | InputError]
    ) -> None:
        """Run the model until all that was given is read, note the answers, and close the sequences that end."""
        while self._pool.waiting:
            try:
                finished = self._pool.tick()
            except CallError as error:
                for stream in error.streams:
                    answers[given[stream]] = error
                    self._close(pieces[given[stream]].sequence)
                continue
            for stream, output in zip(finished.streams, finished.outputs, strict=True):
                answers[given[stream]] = finished.every.get(stream, output)
        for place in given.values():
            if pieces[place].end:
                self._close(pieces[place].sequence)
        given.clear()
