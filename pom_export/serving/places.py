"""Which requests may open streams now, and which wait."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from pom_export.serving.errors import RequestError


class Places:
    """The streams that requests may open. Requests that find none wait, first come, first served.

    Args:
        most: number of streams.
        most_waiting: the most requests that wait.
    """

    def __init__(self, most: int, most_waiting: int) -> None:
        self._most = self._free = most
        self._most_waiting = most_waiting
        self._queue: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return len(self._queue)

    @asynccontextmanager
    async def taken(self, count: int) -> AsyncIterator[None]:
        """Wait until a request may open streams, which it has closed when the block ends.

        Args:
            count: how many, at least 1.

        Raises:
            RequestError: there are not as many, or too many requests wait.
        """
        if count > self._most:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"{count} streams are more than the server's {self._most}", "Ask for fewer"
            )
        if self._queue or count > self._free:
            await self._wait(count)
        else:
            self._free -= count
        try:
            yield
        finally:
            self._give_back(count)

    async def _wait(self, count: int) -> None:
        if len(self._queue) >= self._most_waiting:
            raise RequestError(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"all {self._most} streams are in use, and {len(self._queue)} requests wait",
                "Try again later",
                code="full",
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (turn, count)
        self._queue.append(entry)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # already passed over
                    self._queue.remove(entry)
                self._admit()
            else:
                self._give_back(count)  # its turn came as it left
            raise

    def _give_back(self, count: int) -> None:
        self._free += count
        self._admit()

    def _admit(self) -> None:
        while self._queue:
            turn, count = self._queue[0]
            if not turn.cancelled():
                if count > self._free:
                    return
                self._free -= count
                turn.set_result(None)
            self._queue.popleft()
