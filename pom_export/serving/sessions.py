"""What a session's next request continues, kept between requests."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, Protocol

from pom_export.runtime.streaming.state import State
from pom_export.serving.errors import RequestError

# What a session's name and its place in a table take besides its arrays.
_OVERHEAD: Final = 1024
# How many dropped sessions are remembered.
_MOST_GONE: Final = 2**17
_NAME: Final = re.compile(r"[A-Za-z0-9._:@-]{1,128}")


class SessionStore(Protocol):
    """Keeps the state of each session, with whatever notes the request left in it."""

    async def get(self, name: str) -> State | None:
        """Return a session's state; None if there is no such session.

        Raises:
            GoneError: there was one, and it was dropped.
        """

    async def put(self, name: str, state: State) -> None:
        """Keep a session's state."""

    async def drop(self, name: str) -> bool:
        """Forget a session; return whether there was one."""

    async def sizes(self) -> tuple[int, int]:
        """Return the number of sessions, and their size in bytes."""


class GoneError(RequestError):
    """A session was dropped: its next request would otherwise silently begin anew."""

    def __init__(self, name: str) -> None:
        super().__init__(
            HTTPStatus.GONE,
            f"session {name} was dropped: its time was over, or others needed its place",
            "Send everything again, which begins it anew",
            param="session",
            code="session_gone",
        )


class MemoryStore:
    """Keeps sessions in memory: the most recently used ones, each for a time.

    Args:
        most: the most sessions.
        most_bytes: the most bytes of all states together.
        seconds: how long a session is kept after its last use.
        clock: returns the time in seconds.
    """

    def __init__(self, most: int, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._most_bytes, self._seconds, self._clock = most, most_bytes, seconds, clock
        # Those used least recently first, each with the time of its last use.
        self._kept: OrderedDict[str, tuple[State, float]] = OrderedDict()
        self._bytes = 0
        self._gone: OrderedDict[str, None] = OrderedDict()

    async def get(self, name: str) -> State | None:  # noqa: D102 (the protocol says it)
        self._drop_old()
        if name in self._gone:
            del self._gone[name]
            raise GoneError(name)
        if name not in self._kept:
            return None
        state, _ = self._kept[name]
        self._kept[name] = state, self._clock()
        self._kept.move_to_end(name)
        return state

    async def put(self, name: str, state: State) -> None:  # noqa: D102
        self.add(name, state)

    def add(self, name: str, state: State) -> None:
        """Do what `put` does, outside of a coroutine."""
        self._remove(name)
        self._gone.pop(name, None)
        self._kept[name] = state, self._clock()
        self._bytes += size_of(state)
        self._drop_old()

    async def drop(self, name: str) -> bool:  # noqa: D102
        self._gone.pop(name, None)
        return self._remove(name)

    async def sizes(self) -> tuple[int, int]:  # noqa: D102
        self._drop_old()
        return len(self._kept), self._bytes

    def items(self) -> Iterator[tuple[str, State]]:
        """Yield all sessions, those used least recently first."""
        self._drop_old()
        for name, (state, _) in self._kept.items():
            yield name, state

    def _remove(self, name: str) -> bool:
        state, _ = self._kept.pop(name, (None, 0.0))
        if state is None:
            return False
        self._bytes -= size_of(state)
        return True

    def _drop_old(self) -> None:
        oldest = self._clock() - self._seconds
        while self._kept and (
            len(self._kept) > self._most or self._bytes > self._most_bytes or self._first_use() < oldest
        ):
            name = next(iter(self._kept))
            self._remove(name)
            self._gone[name] = None
            if len(self._gone) > _MOST_GONE:
                self._gone.popitem(last=False)

    def _first_use(self) -> float:
        return next(iter(self._kept.values()))[1]


def size_of(state: State) -> int:
    """Return how many bytes a kept state takes, about."""
    return _OVERHEAD + state.nbytes + sum(array.nbytes for array in state.extras.values())


class Session:
    """A session during a request, which alone uses it.

    Attributes:
        name: its name; None: the request is no session's, and nothing is kept.
        state: the state to continue from; None: from the beginning.
    """

    def __init__(self, name: str | None, state: State | None, store: SessionStore) -> None:
        self.name = name
        self.state = state
        self._store = store

    async def keep(self, state: State) -> None:
        """Let the next request continue from a state."""
        if self.name is not None:
            await self._store.put(self.name, state)
        self.state = state


class Sessions:
    """Lets one request at a time use each session.

    Args:
        store: where they are kept.
    """

    def __init__(self, store: SessionStore) -> None:
        self.store = store
        self._busy: set[str] = set()

    @asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[Session]:
        """Yield a session, for a request.

        Raises:
            RequestError: the name has another form, another request uses the session, or it was dropped.
        """
        if name is None:
            yield Session(None, None, self.store)
            return
        with _Only(self._busy, checked_name(name)):
            yield Session(name, await self.store.get(name), self.store)

    async def drop(self, name: str) -> bool:
        """Forget a session; return whether there was one.

        Raises:
            RequestError: the name has another form, or a request uses the session.
        """
        with _Only(self._busy, checked_name(name)):
            return await self.store.drop(name)


class _Only:
    """A block for one request of a session at a time."""

    def __init__(self, busy: set[str], name: str) -> None:
        self._busy = busy
        self._name = name

    def __enter__(self) -> None:
        if self._name in self._busy:
            raise RequestError(
                HTTPStatus.CONFLICT,
                f"session {self._name} is in use by another request",
                "Wait for its answer",
                param="session",
                code="session_busy",
            )
        self._busy.add(self._name)

    def __exit__(self, *_: object) -> None:
        self._busy.discard(self._name)


def checked_name(name: object) -> str:
    """Return a session's name.

    Raises:
        RequestError: it has another form.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise RequestError(
        HTTPStatus.BAD_REQUEST,
        f"session is {name!r}",
        "Give 1 to 128 letters, digits, or any of . _ : @ -",
        param="session",
    )
