"""Keep torch's words about its internals from stderr: where it fails, our one line says why."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Final

_LOGGERS: Final = ("torch", "onnxscript", "onnx_ir", "onnx")


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence what torch and its exporter log, warn of and print; nothing of it is the user's to mend."""
    # torch gives many of its loggers levels of their own, which those above them don't change.
    levels = {logger: logger.level for logger in _loggers()}
    for logger in levels:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)


def _loggers() -> list[logging.Logger]:
    below = tuple(f"{name}." for name in _LOGGERS)
    made = [name for name in logging.root.manager.loggerDict if name.startswith(below)]
    return [logging.getLogger(name) for name in (*_LOGGERS, *made)]


@contextlib.contextmanager
def quiet_failure() -> Iterator[None]:
    """Keep back what a block prints on stderr: it is given out at its end, and dropped when the block raises.

    A module that was traced by torch.fx prints a trace of its code before it raises.
    """
    kept = io.StringIO()
    with contextlib.redirect_stderr(kept):
        yield
    if kept.getvalue() and sys.stderr is not None:
        sys.stderr.write(kept.getvalue())
