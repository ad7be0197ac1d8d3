"""Show the package's logs on stderr: warnings, and with --debug everything but the stages, shown separately."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pom_export.cli.flags import in_flags
from pom_export.cli.output import say_on_stderr
from pom_export.errors import printable
from pom_export.stages import STAGE


class _OnStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say_on_stderr(printable(f"{record.name}: {in_flags(record.getMessage())}"))
        # Of an error that a command survives, such as a server, the trace would otherwise be lost.
        if record.exc_info and record.levelno >= logging.ERROR:
            for line in logging.Formatter().formatException(record.exc_info).splitlines():
                say_on_stderr(printable(line))


@contextmanager
def logs_on_stderr(*, debug: bool) -> Iterator[None]:
    """Show logs while a command runs.

    Args:
        debug: whether to show messages that only help with debugging.
    """
    logger = logging.getLogger(__name__.partition(".")[0])
    handler = _OnStderr(logging.DEBUG if debug else logging.WARNING)
    handler.addFilter(lambda record: not hasattr(record, STAGE))
    level = logger.level
    logger.addHandler(handler)
    if debug:
        logger.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
