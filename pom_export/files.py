"""Outputs appear whole or not at all: everything is written to a staging folder and renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pom_export.errors import InputError

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def readable_file(path: str | os.PathLike[str], kind: str) -> Path:
    """Return `path` when it is a file with something in it.

    Raises:
        InputError: it is missing, a folder, empty or unreadable; `kind` names it in the message.
    """
    file = Path(path)
    if not file.exists():
        raise InputError(f"{kind} {file} does not exist", "Check the path")
    if file.is_dir():
        raise InputError(f"{kind} {file} is a folder", "Name a file")
    if not file.is_file():
        raise InputError(f"{kind} {file} is not a regular file", "Name a file")
    try:
        with file.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise InputError(f"{kind} {file} cannot be read: {error.strerror}", "Check its permissions") from error
    if empty:
        raise InputError(f"{kind} {file} is empty (0 bytes)", "Copy or save it again")
    return file


@contextmanager
def staged_output(path: str | os.PathLike[str], source: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield the path to write to, in a staging folder beside `path`; move what lies there into place at the end.

    Files written beside the yielded path (external weights, a manifest) move with it, each by one rename, the
    named file last. When the block raises, the staging folder is removed and nothing else has changed.

    Raises:
        InputError: the output's folder is missing or not writable, `path` is a folder, or it is `source`, the file
            that the output is made from.
    """
    target = Path(path)
    if target.exists() and not target.is_file() and not target.is_dir():
        raise InputError(f"output {target} is not a regular file", "Choose another name")
    if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
        raise InputError(f"output {target} is the input itself", "Choose another name")
    if target.is_dir():
        raise InputError(f"output {target} is a folder", "Name a file, such as model.onnx")
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise InputError(f"cannot write to {target.parent}: {error.strerror}", "Choose a writable folder") from error
    try:
        staged = staging / target.name
        yield staged
        others = sorted(file for file in staging.iterdir() if file != staged)
        for file in [*others, staged]:
            file.replace(target.parent / file.name)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}", "Check space and permissions") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
