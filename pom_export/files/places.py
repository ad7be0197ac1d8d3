"""Check where outputs may be written."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.files.names import AnyPath, as_path, check_name
from pom_export.files.staging_folder import StagingFolder

# Suffixes of files that an export writes; any other file in a source folder is assumed to belong to the checkpoint.
_EXPORTED_SUFFIXES: Final = (".onnx", ".data", ".npz")
_BLOCK: Final = 1 << 16
_WRITE_HINTS: Final = {
    errno.ELOOP: "It is a link that leads to itself: remove it, or choose another name",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOSPC: "Free some space, or choose another disk",
    errno.EDQUOT: "Your quota is used up: free some space, or choose another disk",
    errno.EFBIG: "The file would be larger than this process or file system may write",
}


def check_replaceable(file: Path, sources: Iterable[AnyPath | None], kind: str = "output") -> None:
    """Raise InputError if `file` must not be written, because it is not a regular file or is a source of the job.

    Args:
        file: the file to be written.
        sources: files and folders that the job reads; a folder stands for the files in it, except exports.
        kind: what to call the file in the message.
    """
    check_name(file, kind)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise write_error(file, error) from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{kind} {file} is a folder", "Name a file in it")
    if not stat.S_ISREG(mode):
        raise InputError(f"{kind} {file} is not a regular file", "Choose another name")
    for source in sources:
        if source is not None:
            _check_is_no_source(file, Path(source), kind)


def _check_is_no_source(file: Path, source: Path, kind: str) -> None:
    try:
        same = file.samefile(source)
        in_folder = source.is_dir() and file.parent.samefile(source)
    except OSError:
        return  # the source is missing; reading it will report that
    if same:
        raise InputError(f"{kind} {file} is the input itself", "Choose another name")
    if in_folder and file.suffix not in _EXPORTED_SUFFIXES:
        raise InputError(f"{kind} {file} is a file of the input folder", "Choose another name, such as model.onnx")


def check_writable(path: AnyPath, sources: Iterable[AnyPath | None], kind: str, nbytes: int = 0) -> None:
    """Raise InputError if a file could not be written at the end of a long job; the check leaves nothing behind.

    Args:
        path: the file to be written.
        sources: as for `check_replaceable`.
        kind: what to call the file in the message.
        nbytes: approximate size of the file, to check that the disk has enough space.
    """
    file = as_path(path, kind)
    check_replaceable(file, sources, kind)
    place = file.resolve() if file.is_symlink() else file
    staging = StagingFolder(place.parent)
    try:
        staging.make()
        with (staging.files / place.name).open("wb") as trial:
            for _ in range(0, max(nbytes, 1), _BLOCK):
                trial.write(bytes(_BLOCK))
    except OSError as error:
        raise write_error(file, error) from error
    finally:
        staging.remove()


def write_error(target: Path, error: OSError) -> InputError:
    """Return the error for a file that cannot be written."""
    hint = _WRITE_HINTS.get(error.errno or 0, "Check space and permissions")
    return InputError(f"cannot write {target}: {error.strerror or error}", hint)


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Create a folder if it is missing, and remove it at the end if nothing was put into it.

    Raises:
        InputError: the folder and its parent are missing, or it cannot be created.
    """
    if folder.exists():
        yield
        return
    if not folder.parent.exists():
        raise InputError(f"folder {folder} does not exist, nor does {folder.parent}", f"Create it: mkdir -p {folder}")
    try:
        folder.mkdir()
    except OSError as error:
        raise InputError(f"cannot create folder {folder}: {error.strerror}", "Choose another one") from error
    try:
        yield
    finally:
        with interrupts.held(), suppress(OSError):  # not empty if the output is in it
            folder.rmdir()
