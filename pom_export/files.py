"""Outputs appear whole or not at all: everything is written to a staging folder and renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pom_export import interrupts
from pom_export.errors import InputError

AnyPath = str | os.PathLike[str]

_BLOCK = 1 << 20
_STAGING_PREFIX = ".pom-export-"
# What an export writes; anything else in a folder that is a source is taken for a part of the checkpoint.
_EXPORTED_SUFFIXES = (".onnx", ".data", ".npz")
_WRITE_HINTS = {
    errno.ELOOP: "It is a link that leads to itself: remove it, or choose another name",
    errno.ENAMETOOLONG: "Choose a shorter name",
    errno.ENOSPC: "Free some space, or choose another disk",
    errno.EDQUOT: "Your quota is used up: free some space, or choose another disk",
    errno.EFBIG: "The file would be larger than this process or file system may write",
}


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def readable_file(path: AnyPath, kind: str) -> Path:
    """Return `path` when it is a file with something in it.

    Raises:
        InputError: it is missing, a folder, empty or unreadable; `kind` names it in the message.
    """
    file = Path(path)
    _check_name(file, kind)
    try:
        if not file.exists():
            raise InputError(f"{kind} {file} does not exist", "Check the path")
        if file.is_dir():
            raise InputError(f"{kind} {file} is a folder", "Name a file")
        if not file.is_file():
            raise InputError(f"{kind} {file} is not a regular file", "Name a file")
        with file.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        hint = "Check the path" if error.errno == errno.ENAMETOOLONG else "Check its permissions"
        raise InputError(f"{kind} {file} cannot be read: {error.strerror}", hint) from error
    if empty:
        raise InputError(f"{kind} {file} is empty (0 bytes)", "Copy or save it again")
    return file


def check_replaceable(file: Path, sources: Iterable[AnyPath | None], kind: str = "output") -> None:
    """Raise InputError when `file` must not be written: it is no regular file, or a source of the job.

    Args:
        file: where something is to be written.
        sources: what the job reads; a folder stands for what lies in it, exports left out.
        kind: names the file in the message.
    """
    _check_name(file, kind)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _write_error(file, error) from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{kind} {file} is a folder", "Name a file, such as model.onnx")
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
        return  # a source that is not there; reading it will say so
    if same:
        raise InputError(f"{kind} {file} is the input itself", "Choose another name")
    if in_folder and file.suffix not in _EXPORTED_SUFFIXES:
        raise InputError(f"{kind} {file} is a file of the input folder", "Choose another name, such as model.onnx")


def _check_name(file: Path, kind: str) -> None:
    """Raise InputError for a name that ONNX and TensorRT, which take UTF-8, could not be given."""
    try:
        os.fspath(file).encode()
    except UnicodeEncodeError as error:
        shown = os.fspath(file).encode(errors="backslashreplace").decode()
        raise InputError(f"{kind} {shown} is not named in UTF-8", "Rename it, or choose another name") from error


@contextmanager
def staged_output(
    path: AnyPath, *sources: AnyPath | None, beside: Iterable[Path] = (), stale: Iterable[Path] = ()
) -> Iterator[Path]:
    """Yield the path to write to, in a staging folder beside `path`; move what lies there into place at the end.

    Files written beside the yielded path (external weights, a manifest) move with it, each by one rename, the
    named file last; a link in its place is written through. When the block raises, or a move fails, the staging
    folder is removed and nothing else has changed.

    Args:
        path: the file to write.
        sources: files and folders that the output is made from; none of them is ever replaced.
        beside: where files beside it will go, if that is known: what forbids them is then said before the block.
        stale: files that belong to what is replaced, removed unless they are replaced too.

    Raises:
        InputError: the output's folder is missing or not writable, or a place is taken by a folder, by something
            that is no file, or by a source.
    """
    target = Path(path)
    if os.fspath(path).endswith(os.sep):
        raise InputError(f"output {os.fspath(path)} is a folder", "Name a file, such as model.onnx")
    for file in (target, *beside):
        check_replaceable(file, sources)
    # As for `open`, a write to a link reaches what it leads to.
    place = target.resolve() if target.is_symlink() else target
    staging = None
    try:
        with interrupts.held():
            staging = _make_staging(place)
        interrupts.check()
        staged = staging / target.name
        yield staged
        with interrupts.held():
            interrupts.check()
            _move_into_place(staged, place, target.parent, sources, stale)
    except OSError as error:
        # What cannot be read is not the output's fault; an error without a name comes from writing.
        if error.filename is not None and staging is not None and os.fspath(staging) not in str(error.filename):
            raise
        raise _write_error(target, error) from error
    finally:
        with interrupts.held():
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)


def _make_staging(place: Path) -> Path:
    """Make the staging folder, on the output's own file system: only there can a file be renamed into place."""
    if not place.parent.exists():
        raise InputError(f"folder {place.parent} does not exist", f"Create it: mkdir -p {place.parent}")
    try:
        return Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=place.parent))
    except OSError as error:
        raise InputError(f"cannot write to {place.parent}: {error.strerror}", "Choose a writable folder") from error


def _move_into_place(
    staged: Path, place: Path, folder: Path, sources: Iterable[AnyPath | None], stale: Iterable[Path]
) -> None:
    others = {file: folder / file.name for file in sorted(staged.parent.iterdir()) if file != staged}
    for destination in others.values():
        check_replaceable(destination, sources)
    obsolete = set(stale) - set(others.values())
    kept = Path(tempfile.mkdtemp(dir=staged.parent))
    try:
        with ExitStack() as undo:
            for destination in (*others.values(), *obsolete):
                _keep(destination, kept, undo)
            for file, destination in others.items():
                # A rename, unless the output is a link into another file system.
                shutil.move(file, destination)
            for destination in obsolete:
                destination.unlink(missing_ok=True)
            staged.replace(place)
            undo.pop_all()
    except OSError as error:
        raise _write_error(place, error) from error


def _keep(file: Path, folder: Path, undo: ExitStack) -> None:
    """Have `undo` bring back what lies at a place now: nothing, or a file, which is kept in `folder` meanwhile."""
    if not os.path.lexists(file):
        undo.callback(file.unlink, missing_ok=True)
        return
    kept = folder / file.name
    try:
        os.link(file, kept, follow_symlinks=False)  # so that the file is missing at no time
    except OSError:  # there are no links here, or not to this file
        shutil.move(file, kept)
    undo.callback(shutil.move, kept, file)


def _write_error(target: Path, error: OSError) -> InputError:
    hint = _WRITE_HINTS.get(error.errno or 0, "Check space and permissions")
    return InputError(f"cannot write {target}: {error.strerror or error}", hint)
