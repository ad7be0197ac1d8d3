"""Collect TensorRT's log: one logger per process, which keeps errors for our own messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

# The lists of all blocks that collect errors, by id, each with the thread that its block runs in.
_COLLECTED: Final[dict[int, tuple[int, list[str]]]] = {}


@cache
def tensorrt_logger(trt: Any) -> Any:
    """Return the process's TensorRT logger, which is never freed because TensorRT uses it beyond a build."""

    class ErrorLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                for errors in _listening():
                    errors.append(message)

    return ErrorLogger()


@contextmanager
def collected_errors(errors: list[str] | None = None) -> Iterator[list[str]]:
    """Collect the errors that TensorRT logs in this thread during a block.

    An error from a thread without a block, such as one of TensorRT's own, may belong to any: every block gets it.

    Args:
        errors: the list to append to; None: a new one.
    """
    errors = [] if errors is None else errors
    _COLLECTED[id(errors)] = threading.get_ident(), errors
    try:
        yield errors
    finally:
        del _COLLECTED[id(errors)]


def errors_here() -> list[str]:
    """Return the errors collected so far by this thread's block, or by the outermost of several."""
    return next(iter(_of_this_thread()), [])


def _of_this_thread() -> list[list[str]]:
    return [errors for thread, errors in list(_COLLECTED.values()) if thread == threading.get_ident()]


def _listening() -> list[list[str]]:
    """Return the lists that an error logged now belongs to."""
    return _of_this_thread() or [errors for _, errors in list(_COLLECTED.values())]
