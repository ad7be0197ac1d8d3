"""Signals that end a command: raised as KeyboardInterrupt, remembered if that is swallowed, held where they'd harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


class _State:
    """What the handler knows: signals come to the main thread only, so there is one state."""

    received: int | None = None
    held: int = 0


def _handle(number: int, _: FrameType | None) -> None:
    _State.received = number
    if not _State.held:
        raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[None]:
    """Turn every ending signal of the block into KeyboardInterrupt, so that all clean up alike.

    Signals that are ignored (as nohup and shell scripts ask for), or that the embedding program handles, stay so.
    """
    _State.received = None
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    replaced = {number: signal.getsignal(number) for number in _ENDING if signal.getsignal(number) in _DEFAULTS}
    try:
        for number in replaced:
            signal.signal(number, _handle)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Let no signal interrupt the block; one that arrives meanwhile is seen by the next `check`."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1


def received() -> int | None:
    """Return the number of the ending signal that came since `listening` began, also if someone swallowed it.

    Lazy imports of torch, for one, turn a KeyboardInterrupt into errors of other types.
    """
    return _State.received


def check() -> None:
    """Raise KeyboardInterrupt when an ending signal came, before something is done that it was to prevent."""
    if _State.received is not None:
        raise KeyboardInterrupt
