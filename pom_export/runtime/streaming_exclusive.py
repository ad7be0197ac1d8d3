"""Tell that two threads use one stream, before they spoil its state."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Final

from pom_export.errors import InputError

_USER: Final = "user"


class Exclusive:
    """A block that one thread at a time is in; any other gets an error, it does not wait.

    No lock: an interrupt between taking a lock and noting that would leave it taken for good. A thread that was
    interrupted there may go on here.
    """

    def __init__(self) -> None:
        self._users: dict[str, int] = {}

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # One operation, so that of two threads one is told of the other.
        if self._users.setdefault(_USER, thread) != thread:
            raise InputError("this StreamingSession is in use by another thread", "Give each thread its own: fork()")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users.pop(_USER, None)
