"""TensorRT's log: one logger a process, which keeps errors for our own messages."""

from __future__ import annotations

from functools import cache
from typing import Any

_errors: list[str] = []


@cache
def tensorrt_logger(trt: Any) -> Any:
    """Return the process's TensorRT logger; TensorRT goes on using it after a build, so it is never freed."""

    class ErrorLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                _errors.append(message)

    return ErrorLogger()


def take_errors() -> list[str]:
    """Return the errors logged since the last call, and forget them."""
    taken = list(_errors)
    _errors.clear()
    return taken
