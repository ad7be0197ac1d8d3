"""What outlives a replica: the sessions, and what its metrics had counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from pom_export.runtime.streaming.state import State
from pom_export.serving.metrics import ModelMetrics, summed
from pom_export.serving.sessions import GoneError, MemoryStore
from pom_export.serving.settings import ServeSettings

# A replica that has not reported for as long holds nothing any more.
_SILENT_SECONDS: Final = 5.0


class Keeper:
    """Keeps sessions and metrics, in a process of its own.

    Args:
        settings: the limits of sessions.
        clock: returns the time in seconds.
    """

    def __init__(self, settings: ServeSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = MemoryStore(settings.sessions, settings.session_bytes, settings.session_seconds, clock)
        self._clock = clock
        self._reports: dict[str, tuple[ModelMetrics, float]] = {}

    async def get(self, name: str) -> tuple[State | None, bool]:
        """Return a session's state, and whether it was dropped."""
        try:
            return await self._store.get(name), False
        except GoneError:
            return None, True

    async def put(self, name: str, state: State) -> None:
        """Keep a session's state."""
        await self._store.put(name, state)

    async def drop(self, name: str) -> bool:
        """Forget a session; return whether there was one."""
        return await self._store.drop(name)

    async def sizes(self) -> tuple[int, int]:
        """Return the number of sessions, and their size in bytes."""
        return await self._store.sizes()

    async def items(self) -> list[tuple[str, State]]:
        """Return all sessions."""
        return list(self._store.items())

    async def report(self, replica: str, metrics: ModelMetrics) -> None:
        """Take a replica's metrics, which replace those that it reported before."""
        self._reports[replica] = metrics, self._clock()

    async def metrics(self) -> ModelMetrics | None:
        """Return the metrics of all replicas together; None before the first report."""
        now = self._clock()
        living = {name for name, (_, reported) in self._reports.items() if now - reported < _SILENT_SECONDS}
        return summed({name: metrics for name, (metrics, _) in self._reports.items()}, living)


class KeptElsewhere:
    """A `SessionStore` that asks the keeper.

    Args:
        keeper: a handle of its deployment.
    """

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper

    async def get(self, name: str) -> State | None:  # noqa: D102 (the protocol says it)
        state, gone = await self._keeper.get.remote(name)
        if gone:
            raise GoneError(name)
        return state

    async def put(self, name: str, state: State) -> None:  # noqa: D102
        await self._keeper.put.remote(name, state)

    async def drop(self, name: str) -> bool:  # noqa: D102
        return bool(await self._keeper.drop.remote(name))

    async def sizes(self) -> tuple[int, int]:  # noqa: D102
        number, size = await self._keeper.sizes.remote()
        return number, size
