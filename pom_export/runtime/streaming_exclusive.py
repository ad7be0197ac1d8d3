"""Tell that two threads use one stream, before they spoil its state; and that a fork has cut a call off."""

from __future__ import annotations

import os
import threading
from types import TracebackType

from pom_export.errors import InputError


class Exclusive:
    """A block that one thread at a time is in; any other gets an error, it does not wait.

    No lock: an interrupt between taking a lock and noting that would leave it taken for good. A thread that was
    interrupted there may go on here.

    A process that was forked has a copy of what was noted, and of all threads only the one that forked: so each note
    is a process's own, and one of another process tells of a call that will never end here.

    Args:
        fellow: the block of another stream of the same loaded model.
    """

    def __init__(self, fellow: Exclusive | None = None) -> None:
        # By process and stream, the thread that is in its block; of all streams of one loaded model.
        self._users: dict[tuple[int, int], int] = {} if fellow is None else fellow._users

    def __enter__(self) -> None:
        thread = threading.get_ident()
        # One operation, so that of two threads one is told of the other.
        if self._users.setdefault((os.getpid(), id(self)), thread) != thread:
            raise InputError("this StreamingSession is in use by another thread", "Give each thread its own: fork()")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._users.pop((os.getpid(), id(self)), None)

    def check_runnable(self) -> None:
        """Raise InputError in a process that was forked while another thread was in a block.

        What that thread held in the runtime is held for good there, and a call that needs it would never end. The
        state is whole: what a call replaces is left as it is until the call is over.
        """
        here = os.getpid()
        if any(process != here for process, _ in list(self._users)):
            raise InputError(
                "the model cannot be run in this process: it was forked while another thread ran the model",
                "Load the model again here, and restore a snapshot() of this stream",
            )
