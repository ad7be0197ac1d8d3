"""Write a folder of files to a staging folder and rename it, so that it appears completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.files.locks import FolderLock
from pom_export.files.names import AnyPath, as_path, check_name
from pom_export.files.places import write_error
from pom_export.files.staging_folder import StagingFolder


def _never(_: Path) -> bool:
    return False


def check_new_folder(path: AnyPath, replaceable: Callable[[Path], bool] = _never, hint: str = "") -> Path:
    """Return the path of an output folder, if one may be made there: nothing is there, or an empty folder.

    Args:
        path: the folder to be written.
        replaceable: whether an existing folder may be replaced, with all that is in it.
        hint: what to do about a folder that may not be.

    Raises:
        InputError: a file or a folder is there that may not be replaced, or the path has no name, such as `.`.
    """
    target = as_path(path, "output")
    check_name(target, "output")
    if target.name in ("", ".."):
        raise InputError(f"output {os.fspath(path)!r} is a place, not the name of a folder", "Name a new folder in it")
    if not os.path.lexists(target):
        return target
    if target.is_symlink() or not target.is_dir():
        kind = "a link" if target.is_symlink() else "no folder"
        raise InputError(f"output {target} is {kind}", "Choose another name")
    if any(target.iterdir()) and not replaceable(target):
        raise InputError(f"output {target} exists and is not empty", hint or "Choose another name, or remove it")
    return target


@contextmanager
def staged_folder(path: AnyPath, replaceable: Callable[[Path], bool] = _never, hint: str = "") -> Iterator[Path]:
    """Yield an empty folder beside `path`, and rename it to `path` at the end.

    If the block raises, or the renaming fails, nothing has changed. A process that is killed between the two renames
    that replace a folder leaves neither at `path`; the next one removes its staging folder, with the old one in it.

    Args:
        path: the folder to be written.
        replaceable: as for `check_new_folder`, which is asked before and after the block.
        hint: as for `check_new_folder`.

    Raises:
        InputError: as for `check_new_folder`, or the folder's own folder is missing or not writable.
    """
    target = check_new_folder(path, replaceable, hint)
    staging = StagingFolder(target.parent)
    try:
        staging.make()
        staged = staging.files / target.name
        staged.mkdir()
        yield staged
        with FolderLock([target.parent]), interrupts.held():
            interrupts.check()
            check_new_folder(path, replaceable, hint)
            _move_into_place(staged, target, staging.kept)
    except OSError as error:
        # A read error is not the output's fault. An error without a file name comes from writing.
        if error.filename is not None and not staging.holds(error.filename):
            raise
        raise write_error(target, error) from error
    finally:
        staging.remove()


def _move_into_place(staged: Path, target: Path, kept: Path) -> None:
    try:
        with ExitStack() as undo:
            if target.is_dir():
                target.rename(kept / target.name)
                undo.callback((kept / target.name).rename, target)
            staged.rename(target)
            undo.pop_all()
    except OSError as error:
        raise write_error(target, error) from error
