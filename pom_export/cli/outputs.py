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
    """Have a command find out at once, before torch is imported, that an output cannot be written.

    A folder that is missing is made where its parent exists, and goes again where the command leaves nothing in it.

    Args:
        options: the parameters of the command that name outputs; None is none.
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
    """Have the folder of an output there.

    Raises:
        InputError: it is missing, and so is its parent, or it cannot be made.
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
        raise InputError(f"cannot make folder {folder}: {error.strerror}", "Choose another one") from error
    try:
        yield
    finally:
        with interrupts.held(), suppress(OSError):  # not empty: the output is in it
            folder.rmdir()
