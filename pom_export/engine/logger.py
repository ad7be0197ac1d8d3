"""Collect TensorRT's log: one logger per process, which keeps errors for our own messages."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

# Errors, each with the thread in which TensorRT reported it.
_errors: list[tuple[int, str]] = []


@cache
def tensorrt_logger(trt: Any) -> Any:
    """Return the process's TensorRT logger, which is never freed because TensorRT uses it beyond a build."""

    class ErrorLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                _errors.append((threading.get_ident(), message))

    return ErrorLogger()


def take_errors() -> list[str]:
    """Return and forget the errors logged since the last call."""
    taken = [message for _, message in _errors]
    _errors.clear()
    return taken


def take_own_errors() -> list[str]:
    """Return and forget the errors logged in this thread since they were last taken."""
    own = [error for error in list(_errors) if error[0] == threading.get_ident()]
    for error in own:
        _errors.remove(error)
    return [message for _, message in own]
