"""Changes to the whole process: made once, and undone by the last user, also in a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pom_export.process_wide import OneAtATime, Shared

SECONDS = 60


class Lamp:
    """Some process-wide setting that is on or off."""

    def __init__(self) -> None:
        self.switched: list[bool] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        self.switched.append(True)
        try:
            yield
        finally:
            self.switched.append(False)


def test_threads_that_overlap_make_a_change_once_and_the_last_takes_it_back() -> None:
    lamp = Lamp()
    shared = Shared(lamp.on)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with shared.block():
            inside.set()
            leave.wait(SECONDS)

    thread = threading.Thread(target=other)
    with shared.block(), shared.block():
        thread.start()
        assert inside.wait(SECONDS)
        assert shared.here
    assert not shared.here
    assert lamp.switched == [True]
    leave.set()
    thread.join()
    assert lamp.switched == [True, False]


def test_an_exception_takes_it_back_too() -> None:
    lamp = Lamp()
    shared = Shared(lamp.on)
    with pytest.raises(ValueError, match="of the block"), shared.block():
        raise ValueError("of the block")
    assert lamp.switched == [True, False]


def test_one_thread_at_a_time_and_again_inside() -> None:
    alone, order = OneAtATime(), []

    def other() -> None:
        with alone.block():
            order.append("other")

    thread = threading.Thread(target=other)
    with alone.block(), alone.block():
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


def test_a_fork_is_rid_of_other_threads() -> None:
    lamp = Lamp()
    shared, alone = Shared(lamp.on), OneAtATime()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with shared.block(), alone.block():
            inside.set()
            leave.wait(SECONDS)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(SECONDS)
    process = os.fork()
    if not process:
        with alone.block(), shared.block():
            os._exit(0 if lamp.switched == [True, False, True] else 1)
    leave.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert lamp.switched == [True, False]
