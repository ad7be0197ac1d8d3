"""Silence third-party output in the threads that ask for it, and only there.

Where torch fails, our one-line message says why. The changes to the process are undone by the last block that needs
them: `sys.stderr` is replaced with one that tells threads apart, and filters are added to Python's warnings and to log
handlers. The file descriptor is left alone, so what C++ writes to stderr is not suppressed.
"""

from __future__ import annotations

import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Final

from pom_export.process_wide import Shared

_LOGGERS: Final = ("torch", "onnxscript", "onnx_ir", "onnx")
_IGNORED: Final[dict[type[Warning], Shared]] = {}
# Output to stderr that is held back, by thread, with that of the innermost block last.
_KEPT: Final[dict[int, list[io.StringIO]]] = {}


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence the logs, warnings and output of torch and its exporter, none of which the user can do anything about."""
    with quiet_logs(), quiet_warnings(), _kept_stderr():
        yield


@contextmanager
def quiet_failure() -> Iterator[None]:
    """Hold back what a block prints on stderr: it is printed at the end, or dropped if the block raises.

    A module traced by torch.fx prints a traceback of its code before it raises.
    """
    with _kept_stderr() as kept:
        yield
    if kept.getvalue() and sys.stderr is not None:
        sys.stderr.write(kept.getvalue())


@contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Silence Polygraphy, if in use, because its log goes to stdout, and Python's warnings. Errors are still raised.

    Polygraphy's log does not distinguish threads: while one is in such a block, it is silent in all of them.
    """
    with quiet_warnings(), ExitStack() as silence:
        if "polygraphy.logger" in sys.modules:
            silence.enter_context(_POLYGRAPHY.block())
        yield


@contextmanager
def quiet_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignore Python warnings of a category."""
    with _ignored(category).block():
        yield


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Drop the logs of torch and its exporter, including those of loggers created meanwhile."""
    with _LOGS.block():
        yield


class _InQuietThreads:
    """Replaces the text pattern in a filter of warnings: matches any warning raised in a thread that is in a block."""

    def __init__(self, category: type[Warning]) -> None:
        self._category = category

    def match(self, _: str) -> bool:
        return _ignored(self._category).here


def _ignored(category: type[Warning]) -> Shared:
    """Return the change that ignores warnings of a category, shared by all threads."""

    @contextmanager
    def change() -> Iterator[None]:
        # `catch_warnings` would replace this list by another, for all threads.
        filters: Any = warnings.filters
        of_ours = ("ignore", _InQuietThreads(category), category, None, 0)
        filters.insert(0, of_ours)
        try:
            yield
        finally:
            filters = warnings.filters
            with suppress(ValueError):  # if another thread's `catch_warnings` has restored an older list
                filters.remove(of_ours)

    return _IGNORED.get(category) or _IGNORED.setdefault(category, Shared(change))


class _OthersLogs(logging.Filter):
    """Passes logs that are not torch's, or come from other threads."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_LOGS.here and record.name.split(".", 1)[0] in _LOGGERS)


@contextmanager
def _filtered_handlers() -> Iterator[None]:
    # Handlers instead of loggers, since many of torch's loggers have their own levels, and others are created
    # meanwhile.
    others, handlers = _OthersLogs(), _handlers()
    for handler in handlers:
        handler.addFilter(others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(others)


def _handlers() -> list[logging.Handler]:
    """Return the handlers that may print torch's logs."""
    names = [name for name in list(logging.root.manager.loggerDict) if name.split(".", 1)[0] in _LOGGERS]
    handlers = [handler for logger in (logging.root, *map(logging.getLogger, names)) for handler in logger.handlers]
    return [*dict.fromkeys(handlers), *([logging.lastResort] if logging.lastResort else [])]


class _StderrByThread:
    """A stderr that holds back the output of threads in a block."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def _of_thread(self) -> Any:
        kept = _KEPT.get(threading.get_ident())
        return kept[-1] if kept else self._stream

    def write(self, text: str) -> int:
        stream = self._of_thread()
        return len(text) if stream is None else int(stream.write(text))

    def flush(self) -> None:
        if (stream := self._of_thread()) is not None:
            stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of_thread(), name)


@contextmanager
def _stderr_by_thread() -> Iterator[None]:
    before: Any = sys.stderr
    ours: Any = _StderrByThread(before)
    sys.stderr = ours
    try:
        yield
    finally:
        if sys.stderr is ours:
            sys.stderr = before


@contextmanager
def _kept_stderr() -> Iterator[io.StringIO]:
    """Hold back this thread's output to stderr."""
    kept = io.StringIO()
    with _STDERR.block():
        blocks = _KEPT.setdefault(threading.get_ident(), [])
        blocks.append(kept)
        try:
            yield kept
        finally:
            blocks.pop()
            if not blocks:
                del _KEPT[threading.get_ident()]


@contextmanager
def _silent_polygraphy() -> Iterator[None]:
    logger = sys.modules["polygraphy.logger"].G_LOGGER
    with logger.verbosity(logger.CRITICAL + 1):
        yield


_STDERR: Final = Shared(_stderr_by_thread)
_LOGS: Final = Shared(_filtered_handlers)
_POLYGRAPHY: Final = Shared(_silent_polygraphy)
