"""Check the places of outputs before a job begins."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from pom_export import interrupts
from pom_export.errors import InputError
from pom_export.files import check_writable

_Function = TypeVar("_Function", bound=Callable[..., Any])


def writes(*options: str) -> Callable[[_Function], _Function]:
    """Make a command check its outputs first, before torch is imported.

    A missing folder is created if its parent exists, and removed again if the command leaves it empty.

    Args:
        options: the command's parameters that name outputs; a None value is ignored.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def run(**parameters: Any) -> Any:
            with ExitStack() as folders:
                for option in options:
                    if parameters[option] is not None:
                        folders.enter_context(_made_folder(parameters[option]))
                        check_writable(parameters[option], (), "output")
                return function(**parameters)

        return run  # type: ignore[return-value]

    return decorate


@contextmanager
def _made_folder(output: str) -> Iterator[None]:
    """Create the folder of an output if it is missing.

    Raises:
        InputError: the folder and its parent are missing, or it cannot be created.
    """
    folder = Path(output).parent
    if output.endswith(os.sep) or folder.exists():
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
