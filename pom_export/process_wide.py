"""Make changes to the whole process, such as replacing stderr, consistently across overlapping threads."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from weakref import WeakSet


class Shared:
    """A change shared by blocks in several threads: the first one makes it, and the last one reverts it.

    If each block restored what it had found, two overlapping ones would leave one's change behind. In a process created
    by os.fork, only the thread that forked is still in its block.

    Args:
        change: a context that makes the change when entered, and reverts it when left.
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
        """Forget all other threads in a forked process, where they do not exist."""
        self._lock = threading.Lock()
        thread = threading.get_ident()
        self._depths = Counter({thread: self._depths[thread]} if thread in self._depths else {})
        if not self._depths:
            self._made.close()


class OneAtATime:
    """A block that one thread at a time can enter, while others wait. A thread may enter it again from inside."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        _ALL.add(self)

    @contextmanager
    def block(self) -> Iterator[None]:
        """Run a block exclusively."""
        with self._lock:
            yield

    def forget_other_threads(self) -> None:
        """Forget all other threads in a forked process, where they do not exist."""
        self._lock = threading.RLock()


_ALL: WeakSet[Shared | OneAtATime] = WeakSet()


def _after_fork() -> None:
    for each in _ALL:
        each.forget_other_threads()


os.register_at_fork(after_in_child=_after_fork)
