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
    """Yield the path to write to, in a staging folder beside `path`; move what lies there into place at the end.

    Files written beside the yielded path (external weights, a manifest) move with it, each by one rename, the
    named file last; a link in its place is written through. When the block raises, or a move fails, the staging
    folder is removed and nothing else has changed.

    Of two commands with one output, one moves its files when the other's are all in place. A process that is killed
    between two renames leaves the old file with new ones beside it: each of those says, by a content hash, what it
    belongs to. It leaves the staging folder too, which the next command that writes there removes.

    Args:
        path: the file to write.
        sources: files and folders that the output is made from; none of them is ever replaced.
        beside: where files beside it will go, if that is known: what forbids them is then said before the block.
        stale: returns, when the files are about to be moved, those that belong to what is replaced; they are removed
            unless they are replaced too.

    Raises:
        InputError: the output's folder is missing or not writable, or a place is taken by a folder, by something
            that is no file, or by a source.
    """
    target = as_path(path, "output")
    if os.fspath(path).endswith(os.sep):
        raise InputError(f"output {os.fspath(path)} is a folder", "Name a file, such as model.onnx")
    for file in (target, *beside):
        check_replaceable(file, sources)
    # As for `open`, a write to a link reaches what it leads to.
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
        # What cannot be read is not the output's fault; an error without a name comes from writing.
        if error.filename is not None and not (staging.holds(error.filename) or near.holds(error.filename)):
            raise
        raise write_error(target, error) from error
    finally:
        staging.remove()
        near.remove()


def _companions(staged: Path, folder: Path, near: StagingFolder) -> dict[Path, Path]:
    """Return where each file beside the staged one goes: where `near` is.

    That is the output's `folder`, or that of a link to it, which may be on another file system: they are brought there
    first, so that they too are put into place by one rename each.
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
    """Return whether a file already lies in a place.

    Weights that are named by their content do when a model is exported again. They are not touched then: the old model
    needs them as long as it is there.
    """
    if other.is_symlink() or not other.is_file() or other.stat().st_size != file.stat().st_size:
        return False
    return sha256_of(file) == sha256_of(other)


def _keep(file: Path, folder: Path, undo: ExitStack) -> None:
    """Have `undo` bring back what lies at a place now: nothing, or a file, of which `folder` gets a copy."""
    if not os.path.lexists(file):
        undo.callback(file.unlink, missing_ok=True)
        return
    kept = folder / file.name
    try:
        os.link(file, kept, follow_symlinks=False)
    except OSError:  # there are no links here, or not to this file
        shutil.copy2(file, kept, follow_symlinks=False)
    undo.callback(os.replace, kept, file)


def _remove(obsolete: Iterable[Path], sources: Iterable[AnyPath | None]) -> None:
    """Remove what belonged to the file that was replaced; what cannot be removed is bound to that by its hash."""
    for file in obsolete:
        with suppress(OSError, InputError):
            check_replaceable(file, sources)
            file.unlink(missing_ok=True)
