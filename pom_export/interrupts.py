"""Turn signals into a KeyboardInterrupt, remembered if swallowed, and deferred where it would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(KeyboardInterrupt):
    """An ending signal came.

    A class of its own: once a plain KeyboardInterrupt has passed through `exec`, as torch calls it, `python -m` ends
    the process by SIGINT whatever its exit code.
    """


class _State:
    """What the handler knows: signals come to the main thread only, so there is one state."""

    received: int | None = None
    held: int = 0


def _handle(number: int, _: FrameType | None) -> None:
    _State.received = number
    if not _State.held:
        raise Ended


def listen() -> None:
    """Turn every ending signal of this process into a KeyboardInterrupt, so that all clean up alike.

    Signals that are ignored, as nohup and shell scripts ask for, stay so.
    """
    _State.received, _State.held = None, 0
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """Let no signal interrupt the block; one that arrives meanwhile is seen by the next `check`."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Let a signal interrupt only when the block is over, in programs other than our command too.

    Yields:
        What tells whether a signal has come. In a thread other than the main one none ever does.

    Raises:
        KeyboardInterrupt: at the end, when one has come; or what the program's own handler of SIGINT raises.
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
            _take()  # of an earlier command in this process
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
    """Let no signal interrupt what follows: the command is over, and says how."""
    _State.held += 1


def ignore() -> None:
    """Ignore ending signals: a process that exits should do so with its own exit code, not be killed on the way."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)


def received() -> int | None:
    """Return the number of the ending signal that came, also if someone swallowed it.

    Lazy imports of torch, for one, turn a KeyboardInterrupt into errors of other types.
    """
    return _State.received


def check() -> None:
    """Raise Ended when an ending signal came, before something is done that it was to prevent."""
    if _State.received is not None:
        raise Ended
