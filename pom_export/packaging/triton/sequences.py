"""Triton's sequences as streams of a pool: what one call of `execute` brings goes through the model together."""

from __future__ import annotations

from collections.abc import Sequence

from pom_export.errors import InputError
from pom_export.packaging.triton.open_sequences import Array, OpenSequences, Piece
from pom_export.runtime.pool.pool import CallError, StreamPool
from pom_export.runtime.pool.stream import PoolStream


class PooledSequences:
    """Runs the pieces of many sequences through a pool; see `Reader`.

    If a call of the model fails, the sequences of that call end.

    Args:
        pool: the pool, which is used for nothing else.
    """

    def __init__(self, pool: StreamPool) -> None:
        self._pool = pool
        self._open = OpenSequences(pool.open, PoolStream.close, pool.metrics().most_streams)

    def read(self, pieces: Sequence[Piece]) -> list[Array | InputError]:  # noqa: D102 (the protocol says it)
        answers: dict[int, Array | InputError] = {}
        given: dict[PoolStream, int] = {}
        for place, piece in enumerate(pieces):
            if self._open.get(piece.sequence) in given:  # two pieces of one sequence are read one after the other
                self._finish(pieces, given, answers)
            try:
                stream = self._open.stream_of(piece)
                stream.give(piece.tokens, every=piece.every)
            except InputError as error:
                answers[place] = error
                self._open.close(piece.sequence)
            else:
                given[stream] = place
        self._finish(pieces, given, answers)
        return [answers[place] for place in range(len(pieces))]

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
                    self._open.close(pieces[given[stream]].sequence)
                continue
            for stream, output in zip(finished.streams, finished.outputs, strict=True):
                answers[given[stream]] = finished.every.get(stream, output)
        for place in given.values():
            if pieces[place].end:
                self._open.close(pieces[place].sequence)
        given.clear()
