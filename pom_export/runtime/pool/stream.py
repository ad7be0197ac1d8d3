"""One stream of a pool: what it has seen, and what it waits for."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from pom_export.runtime.pool.prefixes import History
from pom_export.runtime.streaming.state import State

if TYPE_CHECKING:
    from pom_export.runtime.pool.table import StreamTable

Array = npt.NDArray[Any]


@dataclass
class Given:
    """Tokens that were given to a stream at once, and are answered at once.

    Attributes:
        tokens: (count, ...).
        every: whether the answer has an output for every token, instead of the last one's.
        taken: how many of them the model has read.
        outputs: the outputs of those, if every token's is wanted.
        compared: whether these tokens were looked up among those that others began with.
        shared: how many of them another stream began with: the state there is worth keeping.
    """

    tokens: Array
    every: bool
    taken: int = 0
    outputs: list[Array] = field(default_factory=list)
    compared: bool = False
    shared: int = 0

    @property
    def left(self) -> int:
        """How many tokens the model has not read."""
        return len(self.tokens) - self.taken

    def piece(self, count: int) -> Array:
        """Return the next tokens to read."""
        return self.tokens[self.taken : self.taken + count]

    def copy(self) -> Given:
        """Return the same for another stream."""
        return replace(self, outputs=list(self.outputs))


class PoolStream:
    """A stream of a `StreamPool`, which creates it: see there. A `with` block closes it.

    Attributes:
        length: number of tokens that the model has read.
        closed: whether it has ended.
    """

    length: int
    closed: bool

    def __init__(self, table: StreamTable, row: int, history: History | None) -> None:
        self.table = table
        self.row = row
        self.history = history
        self.given: deque[Given] = deque()
        self.length = 0
        self.closed = False
        # Changes when the stream's state is replaced, so that a call that is running does not overwrite the new one.
        self.epoch = 0

    def __enter__(self) -> PoolStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def waiting(self) -> int:
        """Number of tokens that were given and that the model has not read."""
        return sum(given.left for given in self.given)

    def give(self, tokens: Any, *, every: bool = False) -> None:
        """Add tokens, which the next ticks read. They are answered once, when all have been read.

        Args:
            tokens: ids (tokens,), or vectors (tokens, d); a leading axis of 1 is allowed.
            every: whether the answer is the output of every token, instead of the last one's.

        Raises:
            InputError: they don't fit, or are more than the model has positions, or the stream is closed.
            PoolFullError: too many tokens wait in the pool.
        """
        self.table.give(self, tokens, every=every)

    def close(self) -> None:
        """End the stream, also in the middle of a prompt, and leave its place to others. It may be called again."""
        self.table.close(self)

    def fork(self) -> PoolStream:
        """Return a new stream that continues from here, with the same tokens waiting.

        Raises:
            InputError: the stream is closed.
            PoolFullError: there is no place for another.
        """
        return self.table.fork(self)

    def snapshot(self) -> State:
        """Return a copy of the state after the tokens read so far, which a StreamingSession can continue as well.

        Raises:
            InputError: the stream is closed.
        """
        return self.table.snapshot(self)
