"""Turn signals into a KeyboardInterrupt, remembered if swallowed, and deferred where it would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """A termination signal arrived.

    This is a separate class because once a plain KeyboardInterrupt has passed through `exec`, which torch uses, `python
    -m` ends the process by SIGINT whatever its exit code.
    """


class _State:
    """The handler's state. There is only one, since signals only arrive in the main thread."""

    received: int | None = None
    held: int = 0


def _handle(number: int, _: FrameType | None) -> None:
    _State.received = number
    if not _State.held:
        raise Ended


def listen() -> None:
    """Turn every termination signal of this process into a KeyboardInterrupt, so that all of them are handled alike.

    Signals that are ignored, as nohup and shell scripts request, stay ignored.
    """
    _State.received, _State.held = None, 0
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """Prevent signals from interrupting the block; the next `check` handles one that arrives meanwhile."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Defer signals until the end of the block, in programs other than our command too.

    Yields:
        A function that returns whether a signal has arrived. In threads other than the main one, it never has.

    Raises:
        KeyboardInterrupt: at the end, if a signal has arrived; or whatever the program's own SIGINT handler raises.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    program_s = signal.getsignal(signal.SIGINT)
    if not callable(program_s) or program_s is _handle:
        check()
        with held():
            yield lambda: _State.received is not None
        check()
        return
    with held():
        try:
            _take()  # left by an earlier command in this process
            signal.signal(signal.SIGINT, _handle)
            yield lambda: _State.received is not None
        finally:
            try:
                signal.signal(signal.SIGINT, program_s)
            finally:
                came = _take()
    if came is not None:
        signal.raise_signal(came)


def _take() -> int | None:
    number, _State.received = _State.received, None
    return number


def settle() -> None:
    """Prevent signals from interrupting what follows: the command has finished and reports its result."""
    _State.held += 1


def ignore() -> None:
    """Ignore termination signals, so that a process that is exiting does so with its own exit code."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def received() -> int | None:
    """Return the number of the termination signal that arrived, even if its exception was swallowed.

    For example, lazy imports in torch turn a KeyboardInterrupt into errors of other types.
    """
    return _State.received


def check() -> None:
    """Raise Ended if a termination signal arrived, before an action that it should prevent."""
    if _State.received is not None:
        raise Ended
