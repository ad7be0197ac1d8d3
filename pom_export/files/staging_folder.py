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
# As tempfile names them.
_NAME: Final = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
_LOCK: Final = "lock"
_TRIES: Final = 10
_FLAGS: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class StagingFolder:
    """A folder of this process beside an output, on its file system: only there can a file be renamed into place.

    It holds a file that is locked as long as this process lives, and that names the machine, since other machines that
    see the folder may not see the lock. Folders of killed processes of this machine are removed by the next that makes
    one beside them.

    Args:
        folder: where it is made.
        patient: whether to wait while another process moves files there.

    Attributes:
        folder: the same.
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
        """Where outputs are written."""
        return self._made / "files"

    @property
    def kept(self) -> Path:
        """Where files that are replaced are kept until all are."""
        return self._made / "kept"

    @property
    def _made(self) -> Path:
        assert self._path is not None
        return self._path

    def holds(self, name: object) -> bool:
        """Return whether a path is in it."""
        return self._path is not None and os.fspath(self._path) in str(name)

    def make(self) -> None:
        """Make it.

        Raises:
            InputError: the folder is missing or takes none.
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
            with suppress(OSError):  # where there are no locks, nobody removes anything
                try_lock(self._lock)
            # Signed once it is locked: one that is not signed is left alone.
            os.write(self._lock, _signature())
            self.files.mkdir()
            self.kept.mkdir()
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = "Free some space, or choose another folder" if full else "Choose a writable folder"
            raise InputError(f"cannot write to {self.folder}: {error.strerror}", hint) from error

    def _make_folder(self) -> tuple[Path, int]:
        """Return the folder and its open lock; an empty folder may be taken for a leftover, and then another is made.

        Raises:
            OSError: none can be made.
        """
        for _ in range(_TRIES):
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self.folder))
            with suppress(FileNotFoundError):
                return path, os.open(path / _LOCK, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def remove(self) -> None:
        """Remove it and all that is in it, if it was made; a process that was forked leaves it to its parent."""
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
    """Yield a folder for files that are needed for a while; what killed processes have left of theirs is removed.

    Raises:
        InputError: the system's folder for such files takes none.
    """
    staging = StagingFolder(Path(tempfile.gettempdir()), patient=False)
    try:
        staging.make()
        yield staging.files
    finally:
        staging.remove()


def _signature() -> bytes:
    """Return what the lock of this machine's processes holds; no other file does."""
    return f"pom-export staging folder of {platform.node()}\n".encode(errors="replace")


def _remove_leftovers(folder: Path) -> None:
    """Remove staging folders that no living process holds; the folder is locked."""
    with suppress(OSError):
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        for path in found:
            with suppress(OSError), interrupts.held():
                _remove_unless_held(path)


def _remove_unless_held(path: Path) -> None:
    """Remove a staging folder of this user and this machine that nobody holds.

    Raises:
        OSError: it is none, or it cannot be removed.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            return
        try:
            lock = os.open(_LOCK, _FLAGS, dir_fd=folder)
        except FileNotFoundError:
            path.rmdir()  # killed between its first two steps or its last two; one that holds anything is not ours
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
    """Remove a staging folder, its lock last: whoever is killed on the way leaves what the next one knows."""
    for name in os.listdir(path):  # noqa: PTH208 (names are what is compared)
        if name != _LOCK:
            shutil.rmtree(path / name, ignore_errors=True)
    shutil.rmtree(path, ignore_errors=True)
