"""Refuse files in which functions differ only in their overload, which not every runtime reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pom_export.errors import InputError

if TYPE_CHECKING:
    from onnx import FunctionProto


def refuse_overloads(path: Path, functions: Iterable[FunctionProto], reader: str) -> None:
    """Refuse a file with functions that its reader would confuse, such as earlier versions of this toolkit wrote.

    Args:
        path: path of the file.
        functions: the functions of the model in it.
        reader: name of the reader, which only considers domain and name.

    Raises:
        InputError: several functions have the same domain and name.
    """
    counts = Counter((function.domain, function.name) for function in functions)
    for (domain, name), count in counts.items():
        if count > 1:
            raise InputError(
                f"{path} holds {count} functions named {domain}::{name}, distinguished only by their "
                f"overloads, and {reader} would use one of them for all",
                "Export it again: each function now has a name of its own",
            )
