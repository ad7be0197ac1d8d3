"""Create staging folders, and remove those of killed processes."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.files.locks import FolderLock, try_lock, unlock

_PREFIX: Final = ".pom-export-"
# The names that tempfile creates.
_NAME: Final = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
_LOCK: Final = "lock"
_TRIES: Final = 10
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StagingFolder:
    """A folder of this process beside an output, on the same file system, as a file can only be renamed within one.

    It contains a file that is locked as long as this process lives and that names the machine, since other machines
    that see the folder may not see the lock. Folders of killed processes on this machine are removed by the next
    process that creates one in the same place.

    Args:
        folder: the folder in which it is created.
        patient: whether to wait while another process moves files there.

    Attributes:
        folder: the folder in which it is created.
    """

    folder: Path

    def __init__(self, folder: Path, *, patient: bool = True) -> None:
        self.folder = folder
        self._patient = patient
        self._path: Path | None = None
        self._lock: int | None = None
        self._process = os.getpid()

    @property
    def files(self) -> Path:
        """The folder that outputs are written to."""
        return self._made / "files"

    @property
    def kept(self) -> Path:
        """The folder that keeps replaced files until all files are in place."""
        return self._made / "kept"

    @property
    def _made(self) -> Path:
        assert self._path is not None
        return self._path

    def holds(self, name: object) -> bool:
        """Return whether a path is in this folder."""
        return self._path is not None and os.fspath(self._path) in str(name)

    def make(self) -> None:
        """Create the folder.

        Raises:
            InputError: the parent folder is missing or not writable.
        """
        if not self.folder.exists():
            raise InputError(f"folder {self.folder} does not exist", f"Create it: mkdir -p {self.folder}")
        with FolderLock([self.folder], patient=self._patient) as sure:
            if sure:
                _remove_leftovers(self.folder)
            with interrupts.held():
                self._make()
        interrupts.check()

    def _make(self) -> None:
        try:
            self._path, self._lock = self._make_folder()
            with suppress(OSError):  # without locks, no process removes anything
                try_lock(self._lock)
            # Signed after it is locked, because unsigned ones are left alone.
            os.write(self._lock, _signature())
            self.files.mkdir()
            self.kept.mkdir()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "Free some space, or choose another folder" if full else "Choose a writable folder"
            raise InputError(f"cannot write to {self.folder}: {error.strerror}", hint) from error

    def _make_folder(self) -> tuple[Path, int]:
        """Return the folder and its open lock; if another process removes the empty folder as a leftover, make another.

        Raises:
            OSError: it cannot be created.
        """
        for _ in range(_TRIES):
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.folder))
            with suppress(FileNotFoundError):
                return path, os.open(path / _LOCK, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def remove(self) -> None:
        """Remove the folder and its contents, if it was created; a forked process leaves this to its parent."""
        if os.getpid() != self._process:
            return
        with interrupts.held():
            if self._path is not None:
                _remove(self._path)
                self._path = None
            if self._lock is not None:
                unlock(self._lock)
                self._lock = None


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, after removing those of killed processes.

    Raises:
        InputError: the system's folder for temporary files is not writable.
    """
    staging = StagingFolder(Path(tempfile.gettempdir()), patient=False)
    try:
        staging.make()
        yield staging.files
    finally:
        staging.remove()


def _signature() -> bytes:
    """Return the content of lock files of this machine's processes, which no other file has."""
    return f"pom-export staging folder of {platform.node()}\n".encode(errors="replace")


def _remove_leftovers(folder: Path) -> None:
    """Remove staging folders that no living process holds; the parent folder is locked."""
    with suppress(OSError):
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        for path in found:
            with suppress(OSError), interrupts.held():
                _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    """Remove a staging folder of this user and this machine, unless a process holds it.

    Raises:
        OSError: it is not a staging folder, or it cannot be removed.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        try:
            lock = os.open(_LOCK, _FLAGS, dir_fd=folder)
        except FileNotFoundError:
            path.rmdir()  # killed between its first two or last two steps; a non-empty folder is not ours
            return
    finally:
        os.close(folder)
    try:
        if _is_signed(lock) and try_lock(lock):
            _remove(path)
    finally:
        unlock(lock)


def _is_signed(lock: int) -> bool:
    signature = _signature()
    return stat.S_ISREG(os.fstat(lock).st_mode) and os.read(lock, len(signature) + 1) == signature


def _remove(path: Path) -> None:
    """Remove a staging folder, its lock last, so that if this process is killed, the next one recognises the folder."""
    for name in os.listdir(path):  # noqa: PTH208 (compares names)
        if name != _LOCK:
            shutil.rmtree(path / name, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
