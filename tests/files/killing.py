"""Kills processes in the middle of their work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

# The audit events of what Python is about to do in a folder.
_EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"}


def killed_at_every_moment(work: Callable[[], None]) -> Iterator[int]:
    """Call a function in one process after another, killing the n-th process before its n-th step in a folder.

    Yields:
        After each process, the number of the step; 0 after the last process, which completed.
    """
    moment = 1
    while not _completed(work, moment):
        yield moment
        moment += 1
    yield 0


def _completed(work: Callable[[], None], moment: int) -> bool:
    process = os.fork()
    if not process:
        steps = 0

        def count(event: str, _: Any) -> None:
            nonlocal steps
            if event in _EVENTS:
                steps += 1
                if steps == moment:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            work()
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    _, status = os.waitpid(process, 0)
    assert status in (0, signal.SIGKILL)
    return status == 0
