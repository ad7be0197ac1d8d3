"""Write outputs to a staging folder and rename them, so that they appear completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.files.locks import FolderLock
from pom_export.files.names import AnyPath, as_path
from pom_export.files.places import check_replaceable, write_error
from pom_export.files.reading import sha256_of
from pom_export.files.staging_folder import StagingFolder


def _nothing() -> Iterable[Path]:
    return ()


@contextmanager
def staged_output(
    path: AnyPath,
    *sources: AnyPath | None,
    beside: Iterable[Path] = (),
    stale: Callable[[], Iterable[Path]] = _nothing,
) -> Iterator[Path]:
    """Yield a path in a staging folder beside `path`, and move the file from there into place at the end.

    Files written beside the yielded path (external weights, a manifest) are moved with it, each by a single rename, and
    the main file last. If `path` is a link, its target is replaced. If the block raises or a move fails, the staging
    folder is removed and nothing else has changed.

    If two commands have the same output, one moves its files only after all of the other's are in place. A process that
    is killed between two renames leaves the old file with new ones beside it, each of which contains a hash of the
    content that it belongs to. It also leaves the staging folder, which the next command that writes to the same folder
    removes.

    Args:
        path: the file to write.
        sources: files and folders that the output is made from, none of which is ever replaced.
        beside: paths of files beside it, if known, so that they are checked before the block.
        stale: returns the files that belong to the file being replaced, when the files are about to be moved. They are
            removed unless they are replaced too.

    Raises:
        InputError: the output's folder is missing or not writable, or a place is taken by a folder, by something that
            is not a file, or by a source.
    """
    target = as_path(path, "output")
    if os.fspath(path).endswith(os.sep):
        raise InputError(f"output {os.fspath(path)} is a folder", "Name a file, such as model.onnx")
    for file in (target, *beside):
        check_replaceable(file, sources)
    # As with `open`, writing to a link writes to its target.
    place = target.resolve() if target.is_symlink() else target
    staging, near = StagingFolder(place.parent), StagingFolder(target.parent)
    try:
        staging.make()
        staged = staging.files / target.name
        yield staged
        companions = _companions(staged, place.parent, near)
        with FolderLock({place.parent, target.parent}):
            obsolete = set(stale()) - set(companions.values())
            with interrupts.held():
                interrupts.check()
                _move_into_place(staged, place, companions, sources, staging.kept)
                _remove(obsolete, sources)
    except OSError as error:
        # A read error is not the output's fault. An error without a file name comes from writing.
        if error.filename is not None and not (staging.holds(error.filename) or near.holds(error.filename)):
            raise
        raise write_error(target, error) from error
    finally:
        staging.remove()
        near.remove()


def _companions(staged: Path, folder: Path, near: StagingFolder) -> dict[Path, Path]:
    """Return the destination of each file beside the staged one, in the folder of `near`.

    That is the output's folder or, if the output is a link, the folder of the link, which may be on another file
    system. The files are first moved there, so that each of them is also put into place by a single rename.
    """
    files = [file for file in sorted(staged.parent.iterdir()) if file != staged]
    if files and not near.folder.samefile(folder):
        near.make()
        files = [Path(shutil.move(file, near.files / file.name)) for file in files]
    return {file: near.folder / file.name for file in files}


def _move_into_place(
    staged: Path, place: Path, companions: Mapping[Path, Path], sources: Iterable[AnyPath | None], kept: Path
) -> None:
    for destination in companions.values():
        check_replaceable(destination, sources)
    try:
        with ExitStack() as undo:
            for file, destination in companions.items():
                if not _same_content(file, destination):
                    _keep(destination, kept, undo)
                    file.replace(destination)
            staged.replace(place)
            undo.pop_all()
    except OSError as error:
        raise write_error(place, error) from error


def _same_content(file: Path, other: Path) -> bool:
    """Return whether a file is already in place.

    This is common for weights named by their content when a model is exported again. They are then left untouched,
    since the old model needs them until it is replaced.
    """
    if other.is_symlink() or not other.is_file() or other.stat().st_size != file.stat().st_size:
        return False
    return sha256_of(file) == sha256_of(other)


def _keep(file: Path, folder: Path, undo: ExitStack) -> None:
    """Register with `undo` how to restore a place: remove the new file, or move back the old one from `folder`."""
    if not os.path.lexists(file):
        undo.callback(file.unlink, missing_ok=True)
        return
    kept = folder / file.name
    try:
        os.link(file, kept, follow_symlinks=False)
    except OSError:  # the file system or this file does not support hard links
        shutil.copy2(file, kept, follow_symlinks=False)
    undo.callback(os.replace, kept, file)


def _remove(obsolete: Iterable[Path], sources: Iterable[AnyPath | None]) -> None:
    """Remove what belonged to the file that was replaced; a hash ties whatever cannot be removed to that file."""
    for file in obsolete:
        with suppress(OSError, InputError):
            check_replaceable(file, sources)
            file.unlink(missing_ok=True)
