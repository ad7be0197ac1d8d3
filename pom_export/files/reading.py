"""Check that files can be read, and hash them."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from pom_export.errors import InputError
from pom_export.files.names import AnyPath, as_path, check_name

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def readable_file(path: AnyPath, kind: str, if_missing: str = "Check the path") -> Path:
    """Return `path` as a Path, if it is a readable file that is not empty.

    Raises:
        InputError: it is missing, a folder, empty or unreadable. `kind` describes it in the message, and `if_missing`
            is the hint if it is missing.
    """
    file = as_path(path, kind)
    check_name(file, kind)
    try:
        if not file.exists():
            raise InputError(f"{kind} {file} does not exist", if_missing)
        if file.is_dir():
            raise InputError(f"{kind} {file} is a folder", "Name a file")
        if not file.is_file():
            raise InputError(f"{kind} {file} is not a regular file", "Name a file")
        with file.open("rb") as stream:
            # Not determined by reading: some system files, which claim to be empty, block until data arrives.
            empty = not os.fstat(stream.fileno()).st_size
    except OSError as error:
        hint = "Check the path" if error.errno == errno.ENAMETOOLONG else "Check its permissions"
        raise InputError(f"{kind} {file} cannot be read: {error.strerror}", hint) from error
    if empty:
        raise InputError(f"{kind} {file} is empty (0 bytes)", "Copy or save it again")
    return file
