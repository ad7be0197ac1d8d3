"""The thread that runs the model, and the way from it to the coroutines that answer requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from pom_export.errors import PomExportError
from pom_export.runtime.pool.pool import Answers, CallError, StreamPool
from pom_export.runtime.pool.stream import PoolStream

_LOG: Final = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class StoppedError(PomExportError):
    """The server ended before a stream was answered."""


class Reader(Protocol):
    """Takes the answers of the streams that are assigned to it. The worker's thread calls both methods."""

    def read(self, answers: Answers) -> None:
        """Take answers, of some of its own streams; it may give them tokens, close them, and assign others."""

    def fail(self, streams: Sequence[PoolStream], error: Exception) -> None:
        """Learn that some of its streams, which are closed now, get no answer."""


class Observer(Protocol):
    """Is told of each answer, for metrics. The worker's thread calls it."""

    def first(self, seconds: float) -> None:
        """Record the time to a stream's first answer since it was assigned."""

    def next(self, seconds: float) -> None:
        """Record the time between two answers of a stream."""


class _Assigned:
    """A stream's reader, and when it was assigned or last answered."""

    __slots__ = ("answered", "reader", "since")

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.since = time.monotonic()
        self.answered = False


class Worker:
    """Ticks a pool in a thread of its own while streams wait, and hands each answer to the stream's reader.

    A call of the model that fails fails its own streams; all others go on. Whoever gives a stream tokens from another
    thread calls `wake` afterwards.

    Args:
        pool: the pool, which nothing else ticks.
        observer: is told of each answer.
    """

    def __init__(self, pool: StreamPool, observer: Observer | None = None) -> None:
        self.pool = pool
        self._observer = observer
        self._assigned: dict[PoolStream, _Assigned] = {}
        self._jobs: deque[Callable[[], None]] = deque()
        self._lock = threading.Lock()  # of jobs, and whether any will still be run
        self._woken = threading.Event()
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name="pom-export-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes work."""
        return self._thread.is_alive() and not self._stopping

    def assign(self, stream: PoolStream, reader: Reader) -> None:
        """Let a reader take a stream's answers until the stream is closed. Called before it is given tokens."""
        self._assigned[stream] = _Assigned(reader)

    def wake(self) -> None:
        """Have the thread look for streams that wait."""
        self._woken.set()

    def run(self, job: Callable[[], _Result]) -> Future[_Result]:
        """Run a function in the thread, between two ticks; what its streams are given is then read at once.

        Returns:
            Its result or exception, later; `asyncio.wrap_future` awaits it. StoppedError if the thread ends first.
        """
        future: Future[_Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._stopping:
                    raise StoppedError("the server is ending", "Ask again later")
                future.set_result(job())
            except Exception as error:  # noqa: BLE001 (handed on)
                future.set_exception(error)

        with self._lock:
            if self._ended:
                run()
            else:
                self._jobs.append(run)
        self.wake()
        return future

    def stop(self) -> None:
        """End the thread after the tick that it is in; streams that wait fail."""
        self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._run_jobs()
            if self.pool.waiting:
                self._tick()
            else:
                self._woken.wait()
                self._woken.clear()
        with self._lock:
            self._ended = True
        self._run_jobs()
        self._fail(list(self._assigned), StoppedError("the server ended before this was answered", "Ask again"))

    def _run_jobs(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def _tick(self) -> None:
        try:
            answers = self.pool.tick()
        except CallError as error:
            _LOG.warning("%s", error)
            self._fail(error.streams, error)
        except Exception as error:  # noqa: BLE001 (whatever it is, the thread goes on)
            _LOG.exception("a tick failed")
            self._fail(list(self._assigned), error)
        else:
            self._hand_out(answers)

    def _hand_out(self, answers: Answers) -> None:
        """Give each reader the answers of its streams; of streams that were closed meanwhile, to nobody."""
        now = time.monotonic()
        places: dict[int, list[int]] = {}
        readers: dict[int, Reader] = {}
        for place, stream in enumerate(answers.streams):
            assigned = self._assigned.get(stream)
            if stream.closed or assigned is None:
                self._assigned.pop(stream, None)
                continue
            self._observe(assigned, now)
            places.setdefault(id(assigned.reader), []).append(place)
            readers[id(assigned.reader)] = assigned.reader
        for key, reader in readers.items():
            part = _part(answers, places[key])
            try:
                reader.read(part)
            except Exception as error:  # noqa: BLE001 (other readers go on)
                _LOG.exception("a reader failed")
                self._fail(part.streams, error)
        self._forget_closed()

    def _observe(self, assigned: _Assigned, now: float) -> None:
        if self._observer is not None:
            (self._observer.next if assigned.answered else self._observer.first)(now - assigned.since)
        assigned.since, assigned.answered = now, True

    def _fail(self, streams: Sequence[PoolStream], error: Exception) -> None:
        """Close streams, and tell their readers."""
        failed: dict[int, list[PoolStream]] = {}
        readers: dict[int, Reader] = {}
        for stream in streams:
            stream.close()
            assigned = self._assigned.pop(stream, None)
            if assigned is not None:
                failed.setdefault(id(assigned.reader), []).append(stream)
                readers[id(assigned.reader)] = assigned.reader
        for key, reader in readers.items():
            try:
                reader.fail(failed[key], error)
            except Exception:  # noqa: BLE001 (other readers go on)
                _LOG.exception("a reader failed")

    def _forget_closed(self) -> None:
        if len(self._assigned) > self.pool.streams:
            for stream in [stream for stream in list(self._assigned) if stream.closed]:
                self._assigned.pop(stream, None)


def _part(answers: Answers, places: list[int]) -> Answers:
    """Return the answers of some of the streams."""
    if len(places) == len(answers.streams):
        return answers
    streams = [answers.streams[place] for place in places]
    every = {stream: answers.every[stream] for stream in streams if stream in answers.every}
    return Answers(streams, answers.outputs[np.array(places, np.intp)], every)


class Bridge:
    """Carries news from the worker's thread to queues that coroutines of an event loop read.

    Args:
        loop: the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def deliver(self, news: Sequence[tuple[asyncio.Queue[Any], Any]]) -> None:
        """Put each item into its queue. All of a tick's at once are cheaper: each call wakes the loop."""
        if not news:
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(_put, news)


def _put(news: Sequence[tuple[asyncio.Queue[Any], Any]]) -> None:
    for queue, item in news:
        queue.put_nowait(item)
