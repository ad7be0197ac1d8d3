"""Run the application on a socket until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

import uvicorn

from pom_export.errors import InputError
from pom_export.runtime.streaming.state import State
from pom_export.serving.app import create_app
from pom_export.serving.service import Service
from pom_export.serving.sessions import MemoryStore

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long connections may take to close once their requests have been answered or given up.
_CLOSING_SECONDS: Final = 1
_POLL_SECONDS: Final = 0.05


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; port 0 takes a free one.

    Raises:
        InputError: the address is in use, not this machine's, or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host!r} is no address of this machine: {error}", "Such as 127.0.0.1") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        another = "address" if error.errno == errno.EADDRNOTAVAIL else "port"
        raise InputError(
            f"cannot listen on {host} port {port}: {error.strerror}", f"Choose another {another}"
        ) from error
    return listening


class _Server(uvicorn.Server):
    """uvicorn's server without its own handling of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Site(Protocol):
    """Where a service answers: in this process, or on a cluster."""

    def add(self, sessions: Iterable[tuple[str, State]]) -> None:
        """Add sessions, before it runs."""

    def run(self, started: Callable[[], None]) -> int:
        """Answer requests until a signal comes; then finish those that run, and refuse new ones.

        A second signal cuts off whatever runs, as does the service's limit.

        Args:
            started: is called once requests are answered.

        Returns:
            The number of the signal.
        """

    def sessions(self) -> list[tuple[str, State]]:
        """Return all sessions, after it has run."""


class Server:
    """Answers in this process: a `Site`.

    Args:
        service: what is served, with its sessions in memory.
        listening: a bound socket, which is closed in the end.
    """

    def __init__(self, service: Service, listening: socket.socket) -> None:
        self._service = service
        self._listening = listening

    def add(self, sessions: Iterable[tuple[str, State]]) -> None:  # noqa: D102 (the protocol says it)
        for name, state in sessions:
            self._store.add(name, state)

    def run(self, started: Callable[[], None]) -> int:  # noqa: D102
        return asyncio.run(_serve(self._service, self._listening, started))

    def sessions(self) -> list[tuple[str, State]]:  # noqa: D102
        return list(self._store.items())

    @property
    def _store(self) -> MemoryStore:
        store = self._service.sessions.store
        assert isinstance(store, MemoryStore)
        return store


async def _serve(service: Service, listening: socket.socket, started: Callable[[], None]) -> int:
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = _Server(config)
    with _signals() as signals:
        serving = asyncio.ensure_future(server.serve(sockets=[listening]))
        try:
            while not (server.started or serving.done()):
                await asyncio.sleep(_POLL_SECONDS)
            started()
            number = await signals.get()
            service.draining = True
            await _drained(service, signals)
            service.model.stop()
        finally:
            server.should_exit = True
            await serving
    return number


async def _drained(service: Service, signals: asyncio.Queue[int]) -> None:
    """Wait until all requests are answered, the time for that is over, or another signal comes."""
    loop = asyncio.get_running_loop()
    end = loop.time() + service.settings.finish_seconds
    while service.requests and signals.empty() and loop.time() < end:
        await asyncio.sleep(_POLL_SECONDS)


@contextmanager
def _signals() -> Iterator[asyncio.Queue[int]]:
    """Yield a queue that gets the ending signals; those that are ignored stay ignored."""
    loop, received = asyncio.get_running_loop(), asyncio.Queue[int]()
    before = {number: signal.getsignal(number) for number in _ENDING}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in handled:
        loop.add_signal_handler(number, received.put_nowait, int(number))
    try:
        yield received
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
            signal.signal(number, before[number])
