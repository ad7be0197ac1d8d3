"""Check the names of files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from pom_export.errors import InputError

AnyPath: TypeAlias = str | os.PathLike[str]


def as_path(path: AnyPath, kind: str) -> Path:
    """Convert a caller's file name to a Path; `kind` describes the file in the message.

    Raises:
        InputError: it is neither text nor a path.
    """
    try:
        return Path(path)
    except TypeError:
        what = type(path).__name__
        raise InputError(f"{kind} is given as a value of type {what}", "Give its path as str or pathlib.Path") from None


def check_name(file: Path, kind: str) -> None:
    """Raise InputError for a name that cannot be passed to ONNX and TensorRT, which require UTF-8."""
    name = os.fspath(file)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = name.encode(errors="backslashreplace").decode()
        raise InputError(f"{kind} {shown} has a name that is not UTF-8", "Rename it, or choose another name") from error
    if "\0" in name:
        raise InputError(f"{kind} {name} has a null character in its name", "Choose another name")
