"""Locks that end with the process that holds them and leave nothing behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final

from pom_export import interrupts
from pom_export.errors import InputError

# A lock is only held while files are renamed, compared or removed; longer than this only by a process that hangs.
_PATIENCE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.003


def try_lock(descriptor: int) -> bool:
    """Try to lock an open file or folder exclusively, without waiting; return whether that succeeded.

    Raises:
        OSError: the file system does not support locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release a lock, and close the descriptor.

    Closing alone would not release the lock if a process was forked in the meantime, as it shares the open file.
    """
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class FolderLock:
    """A block that prevents other processes and threads that use this class from replacing files in some folders.

    The folders themselves are locked, so that no lock file is left. If a file system does not support this, or a folder
    may not be listed, the block runs without a lock.

    Args:
        folders: the folders; they may be links, and repeated.
        patient: whether to wait for a folder that another process has locked; otherwise the block runs without the
            lock.

    Raises:
        InputError: another process has held a folder for a minute.
    """

    def __init__(self, folders: Iterable[Path], *, patient: bool = True) -> None:
        self._folders = {_identity(folder): folder for folder in folders}
        self._patient = patient
        self._locked: list[int] = []

    def __enter__(self) -> bool:
        """Return whether all folders are locked."""
        try:
            # All processes lock folders in the same order, so that no two wait for each other.
            taken = [self._take(self._folders[identity]) for identity in sorted(self._folders)]
        except BaseException:
            self._release()
            raise
        return all(taken)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def _take(self, folder: Path) -> bool:
        """Wait for a folder; signals interrupt the waiting, but not between locking the folder and recording that."""
        latest = time.monotonic() + _PATIENCE_SECONDS
        while True:
            with interrupts.held():
                locked = self._try(folder)
            interrupts.check()
            if locked is not None or not self._patient:
                return bool(locked)
            if time.monotonic() > latest:
                raise InputError(
                    f"another process has locked {folder} for {_PATIENCE_SECONDS:.0f} seconds",
                    "End it, or choose another folder",
                )
            time.sleep(_PAUSE_SECONDS)

    def _try(self, folder: Path) -> bool | None:
        """Return whether a folder was locked; None if another process has it."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            if not try_lock(descriptor):
                os.close(descriptor)
                return None
        except OSError:
            os.close(descriptor)
            return False
        self._locked.append(descriptor)
        return True

    def _release(self) -> None:
        with interrupts.held():
            while self._locked:
                unlock(self._locked.pop())


def _identity(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError:
        return (0, 0)  # missing: whatever uses the folder will report it
    return status.st_dev, status.st_ino
