"""Triton's sequences as sessions of their own, for models whose streams cannot share calls."""

from __future__ import annotations

from collections.abc import Sequence

from pom_export.errors import InputError
from pom_export.graph.exported_model import BLOCK_CAUSAL
from pom_export.packaging.triton.open_sequences import Array, OpenSequences, Piece
from pom_export.runtime.streaming.session import StreamingSession


class SessionSequences:
    """Runs the pieces of sequences one after the other, each sequence in a session of its own; see `Reader`.

    Args:
        session: a session before its first token, of one row, which is forked.
        most: the most sequences at a time.
    """

    def __init__(self, session: StreamingSession, most: int) -> None:
        self._open: OpenSequences[StreamingSession] = OpenSequences(session.fork, _forget, most)
        self._in_blocks = session.model.stateful == BLOCK_CAUSAL

    def read(self, pieces: Sequence[Piece]) -> list[Array | InputError]:  # noqa: D102 (the protocol says it)
        return [self._read(piece) for piece in pieces]

    def _read(self, piece: Piece) -> Array | InputError:
        answer: Array | InputError
        try:
            session = self._open.stream_of(piece)
            if piece.every or self._in_blocks:
                outputs = session.prefill(piece.tokens)[0]
                answer = outputs if piece.every else outputs[-1]
            else:
                answer = session.prefill_last(piece.tokens)[0]
        except InputError as error:
            answer = error
        if piece.end or isinstance(answer, InputError):
            self._open.close(piece.sequence)
        return answer


def _forget(_: StreamingSession) -> None:
    """Leave the session to the garbage collector, with its caches."""
