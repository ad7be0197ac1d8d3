"""One stream of a pool: what it has seen, and what it waits for."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Any, Protocol

import numpy.typing as npt

from pom_export.runtime.pool.prefixes import History
from pom_export.runtime.streaming.state import State

Array = npt.NDArray[Any]


class Given:
    """Tokens that were given to a stream at once, and are answered at once.

    Args:
        tokens: (count, ...).
        every: whether the answer has an output for every token, instead of the last one's.

    Attributes:
        taken: how many of them the model has read.
        left: how many it has not.
        outputs: the outputs of those it has, if every token's is wanted.
        compared: whether these tokens were looked up among those that others began with.
        shared: how many of them another stream began with: the state there is worth keeping.
    """

    __slots__ = ("compared", "every", "left", "outputs", "shared", "taken", "tokens")

    def __init__(self, tokens: Array, *, every: bool) -> None:
        self.tokens = tokens
        self.every = every
        self.taken = 0
        self.left = len(tokens)
        self.outputs: list[Array] = []
        self.compared = False
        self.shared = 0

    def piece(self, count: int) -> Array:
        """Return the next tokens to read."""
        return self.tokens[self.taken : self.taken + count]

    def copy(self) -> Given:
        """Return the same for another stream."""
        twin = Given(self.tokens, every=self.every)
        twin.taken, twin.left, twin.outputs = self.taken, self.left, list(self.outputs)
        return twin


class Owner(Protocol):
    """What keeps a stream's state. Each method does what the stream's of the same name says."""

    def give(self, stream: PoolStream, tokens: Any, *, every: bool) -> None: ...  # noqa: D102
    def close(self, stream: PoolStream) -> None: ...  # noqa: D102
    def fork(self, stream: PoolStream, into: PoolStream | None) -> PoolStream: ...  # noqa: D102
    def snapshot(self, stream: PoolStream) -> State: ...  # noqa: D102


class PoolStream:
    """A stream of a `StreamPool`, which creates it: see there. A `with` block closes it.

    Attributes:
        length: number of tokens that the model has read.
        waiting: number of tokens that were given and that it has not read.
        spared: number of tokens that were not read because the state after them was kept.
        closed: whether the stream has ended.
    """

    length: int
    waiting: int
    spared: int
    closed: bool

    def __init__(self, table: Owner, row: int, history: History | None) -> None:
        self.table = table
        self.row = row
        self.history = history
        self.given: deque[Given] = deque()
        self.length = 0
        self.waiting = 0
        self.spared = 0
        self.closed = False

    def __enter__(self) -> PoolStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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

    def fork(self, into: PoolStream | None = None) -> PoolStream:
        """Return a stream that continues from here, with the same tokens waiting.

        Args:
            into: an open stream that was given nothing, which becomes that one: its place was taken beforehand, so that
                none can be lacking now. None: a new one.

        Raises:
            InputError: the stream is closed, or the other one is, or has been given tokens.
            PoolFullError: there is no place for another.
        """
        return self.table.fork(self, into)

    def snapshot(self) -> State:
        """Return a copy of the state after the tokens read so far, which a StreamingSession can continue as well.

        Raises:
            InputError: the stream is closed.
        """
        return self.table.snapshot(self)
