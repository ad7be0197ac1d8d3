"""Collect TensorRT's log: one logger per process, which keeps errors for our own messages, and lists of layers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

# The lists of all blocks that collect errors, by id, each with the thread that its block runs in; and those of blocks
# that collect lists of layers.
_COLLECTED: Final[dict[int, tuple[int, list[str]]]] = {}
_LAYERS: Final[dict[int, tuple[int, list[str]]]] = {}
LIST_OF_LAYERS: Final = "Layers:\n"
"""How a message begins in which TensorRT lists the layers of an engine that it has built."""


@cache
def tensorrt_logger(trt: Any) -> Any:
    """Return the process's TensorRT logger, which is never freed because TensorRT uses it beyond a build."""

    class ErrorLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in {trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR}:
                for errors in _listening(_COLLECTED):
                    errors.append(message)
            elif message.startswith(LIST_OF_LAYERS):
                for messages in _listening(_LAYERS):
                    messages.append(message)

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


@contextmanager
def collected_layers() -> Iterator[list[str]]:
    """Collect the lists of layers that TensorRT logs in this thread during a block; see `collected_errors`."""
    messages: list[str] = []
    _LAYERS[id(messages)] = threading.get_ident(), messages
    try:
        yield messages
    finally:
        del _LAYERS[id(messages)]


def errors_here() -> list[str]:
    """Return the errors collected so far by this thread's block, or by the outermost of several."""
    return next(iter(_of_this_thread(_COLLECTED)), [])


def _of_this_thread(blocks: Mapping[int, tuple[int, list[str]]]) -> list[list[str]]:
    return [messages for thread, messages in list(blocks.values()) if thread == threading.get_ident()]


def _listening(blocks: Mapping[int, tuple[int, list[str]]]) -> list[list[str]]:
    """Return the lists that a message logged now belongs to."""
    return _of_this_thread(blocks) or [messages for _, messages in list(blocks.values())]
