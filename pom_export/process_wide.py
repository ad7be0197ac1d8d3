"""Make changes to the whole process, such as replacing stderr, consistently across overlapping threads."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from weakref import WeakSet


class Shared:
    """A change that blocks in several threads share: the first makes it, the last takes it back.

    Were each to put back what it found, two that overlap would leave the change of one for good. In a process that
    os.fork made, only the thread that forked is still in its block.

    Args:
        change: makes the change where it is entered, and takes it back where it is left.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[object]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._depths: Counter[int] = Counter()
        self._made = ExitStack()
        _ALL.add(self)

    @property
    def here(self) -> bool:
        """Whether this thread is in a block."""
        return threading.get_ident() in self._depths

    @contextmanager
    def block(self) -> Iterator[None]:
        """Run a block with the change made."""
        thread = threading.get_ident()
        with self._lock:
            if not self._depths:
                self._made.enter_context(self._change())
            self._depths[thread] += 1
        try:
            yield
        finally:
            with self._lock:
                self._depths[thread] -= 1
                if not self._depths[thread]:
                    del self._depths[thread]
                if not self._depths:
                    self._made.close()

    def forget_other_threads(self) -> None:
        """Go on in a process that was forked, where no other thread is."""
        self._lock = threading.Lock()
        thread = threading.get_ident()
        self._depths = Counter({thread: self._depths[thread]} if thread in self._depths else {})
        if not self._depths:
            self._made.close()


class OneAtATime:
    """A block that one thread at a time is in: others wait for it. A thread may enter it again inside."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _ALL.add(self)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Run a block alone."""
        with self._lock:
            yield

    def forget_other_threads(self) -> None:
        """Go on in a process that was forked, where no other thread is."""
        self._lock = threading.RLock()


_ALL: WeakSet[Shared | OneAtATime] = WeakSet()


def _after_fork() -> None:
    for each in _ALL:
        each.forget_other_threads()


os.register_at_fork(after_in_child=_after_fork)
