"""Check the places of outputs before a job begins."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from pom_export.files import check_writable, made_folder

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
                    output = parameters[option]
                    if output is not None:
                        if not output.endswith(os.sep):
                            folders.enter_context(made_folder(Path(output).parent))
                        check_writable(output, (), "output")
                return function(**parameters)

        return run  # type: ignore[return-value]

    return decorate
