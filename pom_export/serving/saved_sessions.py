"""Sessions in a folder: what one server leaves to the next."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from pom_export.errors import InputError, reason_of
from pom_export.files import check_writable
from pom_export.files.locks import try_lock, unlock
from pom_export.runtime.streaming.inputs import fitting_state
from pom_export.runtime.streaming.interface import StatefulModel
from pom_export.runtime.streaming.state import ModelFiles, State
from pom_export.serving.errors import RequestError
from pom_export.serving.sessions import checked_name

_NOTE: Final = "session"
_SUFFIX: Final = ".session.npz"
_LOCK: Final = "in-use"


class SessionFolder:
    """A folder that a server takes sessions from when it starts, and leaves them in when it ends.

    Args:
        folder: the folder, which exists.
        model: the model that the states are of.
    """

    def __init__(self, folder: Path, model: StatefulModel) -> None:
        self._folder = folder
        self._model = model
        self._identity = ModelFiles((model.file.path, *model.file.weights))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder from other servers for a block: of two, one would replace the other's sessions.

        Raises:
            InputError: another server holds it, or it cannot be used.
        """
        # Not the folder itself, which is locked while a file in it is replaced.
        lock = self._folder / _LOCK
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InputError(f"cannot write into {self._folder}: {reason_of(error)}", "Check permissions") from error
        try:
            # Another server that ends may have removed the file since it was opened.
            if not (_locked(descriptor) and _is(lock, descriptor)):
                raise InputError(f"another server keeps its sessions in {self._folder}", "Name another folder")
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
        finally:
            unlock(descriptor)

    def load(self) -> list[tuple[str, State]]:
        """Return all sessions by name, those saved last at the end.

        Raises:
            InputError: a file is damaged or belongs to another model, or the folder cannot be used.
        """
        check_writable(self._folder / f"trial{_SUFFIX}", (), "session")
        return [self._read(file) for file in self._files()]

    def take(self) -> None:
        """Remove the files of loaded sessions: once these go on, they are no longer what the files say.

        Raises:
            InputError: a file cannot be removed.
        """
        for file in self._files():
            try:
                file.unlink()
            except OSError as error:
                raise InputError(f"cannot remove {file}: {reason_of(error)}", "Check permissions") from error

    def save(self, sessions: Iterable[tuple[str, State]]) -> None:
        """Write sessions, those used last at the end.

        Raises:
            InputError: one cannot be written.
        """
        for name, state in sessions:
            # Names differ in case, and file systems may not tell it.
            file = self._folder / (hashlib.sha256(name.encode()).hexdigest()[:32] + _SUFFIX)
            replace(state, notes={**state.notes, _NOTE: name}).save(file)

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)
        except OSError as error:
            raise InputError(f"cannot read {self._folder}: {reason_of(error)}", "Check permissions") from error

    def _read(self, file: Path) -> tuple[str, State]:
        try:
            state = State.load(file)
        except InputError as error:
            raise InputError(error.what, "Remove it, or name another folder") from error
        try:
            name = checked_name(state.notes.get(_NOTE))
            state.model.check_same(self._identity)
            fitting_state(self._model, state.arrays, 1)
        except RequestError as error:
            raise InputError(f"{file} is not a saved session: {error.what}", "Remove it") from error
        except InputError as error:
            raise InputError(
                f"{file} cannot be continued: {error.what}", "Remove it, or name another folder"
            ) from error
        notes = {key: value for key, value in state.notes.items() if key != _NOTE}
        return name, replace(state, notes=notes)


def _locked(descriptor: int) -> bool:
    try:
        return try_lock(descriptor)
    except OSError:  # the file system has no locks
        return True


def _is(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
