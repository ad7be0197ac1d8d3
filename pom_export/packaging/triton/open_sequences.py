"""Triton's sequences: the pieces in which their tokens come, and which of them are open."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy.typing as npt

from pom_export.errors import InputError, printable

Array = npt.NDArray[Any]
_Stream = TypeVar("_Stream")


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


class Reader(Protocol):
    """Runs the pieces of many sequences.

    A piece that cannot be read ends its sequence. Pieces that a client has sent after it would otherwise continue from
    a state without it.
    """

    def read(self, pieces: Sequence[Piece]) -> list[Array | InputError]:
        """Read pieces, and return for each the outputs: (tokens, ...) of every token, or (...) of the last one.

        A piece that cannot be read has its error instead.
        """


class OpenSequences(Generic[_Stream]):
    """The sequences that have begun and not ended, each with what keeps its state.

    A server that drops a sequence which has been idle says so to nobody. So if there is no place when a sequence
    begins, the one that was given nothing for longest is dropped: a server that holds at most as many sequences as
    there are places has dropped it.

    Args:
        make: creates what keeps a state, before the first token.
        end: ends it.
        most: the most at a time.
    """

    def __init__(self, make: Callable[[], _Stream], end: Callable[[_Stream], None], most: int) -> None:
        self._make = make
        self._end = end
        self._most = most
        # The one that was given nothing for longest comes first.
        self._open: dict[Hashable, _Stream] = {}

    def get(self, sequence: Hashable) -> _Stream | None:
        """Return a sequence's stream, if it is open."""
        return self._open.get(sequence)

    def stream_of(self, piece: Piece) -> _Stream:
        """Return a piece's stream, a new one at the start, and count it as the one that was given something last.

        Raises:
            InputError: the sequence is not open.
        """
        if piece.start:
            self.close(piece.sequence)
            if len(self._open) == self._most:
                self.close(next(iter(self._open)))
            self._open[piece.sequence] = self._make()
        elif piece.sequence in self._open:
            self._open[piece.sequence] = self._open.pop(piece.sequence)
        else:
            name = printable(str(piece.sequence), 100)
            raise InputError(f"sequence {name} is not open: it has ended, or failed, or was idle", "Start it anew")
        return self._open[piece.sequence]

    def close(self, sequence: Hashable) -> None:
        """End a sequence, if it is open."""
        if sequence in self._open:
            self._end(self._open.pop(sequence))
