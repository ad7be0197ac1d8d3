"""Show the stages of a job on stderr: as plain lines, or on a terminal with a spinner for the current stage."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

from pom_export import interrupts
from pom_export.cli.flags import in_flags
from pom_export.cli.output import say_on_stderr
from pom_export.errors import printable

_QUIET, _DEBUG = "quiet", "debug"
# Environment variables that ask programs for plain lines.
_PLAIN: Final = ("NO_COLOR", "CI")


def note(context: click.Context, flag: click.Parameter, value: bool) -> None:
    """Remember a flag that affects all output of a command: --quiet, --debug."""
    context.meta[f"pom_export.{flag.name}"] = value


def _noted(flag: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(f"pom_export.{flag}"))


def is_quiet() -> bool:
    """Return whether only results and errors should be printed."""
    return _noted(_QUIET)


def tell_on_stderr(text: str) -> None:
    """Print a message that is neither a result nor an error on stderr, unless --quiet is given."""
    if not is_quiet():
        say_on_stderr(text)


class Progress:
    """Writes stages with the elapsed time to stderr, one line each.

    Args:
        enabled: False writes nothing, like `--quiet`.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled and not is_quiet()
        self._started = time.monotonic()

    def __call__(self, stage: str) -> None:  # noqa: D102 (the class says it)
        if self._enabled:
            say_on_stderr(self.line(stage))

    def line(self, stage: str) -> str:
        """Return the line for a stage that begins now."""
        return printable(f"[{time.monotonic() - self._started:6.1f}s] {in_flags(stage)}")


@contextmanager
def stages(first: str, *, shown: bool, moving: bool) -> Iterator[Callable[[str], None]]:
    """Yield a callback for the stages of a job; no moving display is left when the block ends.

    Args:
        first: the job's first stage.
        shown: whether each stage gets a line.
        moving: whether a terminal may show the current stage with a spinner.
    """
    lines = Progress(shown)
    if is_quiet() or not moving or not _is_lively(sys.stderr):
        lines(first)
        yield lines
        return
    with _spinner(lines, first, kept=shown) as tell:
        yield tell


def _is_lively(stream: object) -> bool:
    """Return whether a stream is a terminal that can redraw a line, without native output that would disturb it."""
    if any(os.environ.get(name) for name in _PLAIN) or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return bool(getattr(stream, "isatty", bool)()) and not _noted(_DEBUG)


@contextmanager
def _spinner(lines: Progress, first: str, *, kept: bool) -> Iterator[Callable[[str], None]]:
    """Show the current stage on the terminal's last line; finished ones stay above it if `kept`."""
    from rich.console import Console
    from rich.progress import Progress as Display
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.table import Column

    console = Console(file=sys.stderr)
    text = TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
    spinner = SpinnerColumn("line" if console.options.ascii_only else "dots")
    # stdout, which may be the same terminal, is for results: nothing is printed there while the display exists.
    display = Display(spinner, text, TimeElapsedColumn(), console=console, transient=True, redirect_stdout=False)
    task = display.add_task(printable(first))
    under_way = [lines.line(first)]

    def keep() -> None:
        if kept:
            console.print(under_way[-1], markup=False, highlight=False, soft_wrap=True)

    def tell(stage: str) -> None:
        with interrupts.held(), suppress(OSError):  # losing the terminal does not end the job
            keep()
            under_way[:] = [lines.line(stage)]
            display.reset(task, description=printable(in_flags(stage)))
        # Signals are handled in the main thread; TensorRT reports its stages from another.
        if threading.current_thread() is threading.main_thread():
            interrupts.check()

    with interrupts.held(), suppress(OSError):
        display.start()
    try:
        interrupts.check()
        yield tell
    finally:
        with interrupts.held():
            with suppress(OSError):
                keep()
            with suppress(OSError):
                display.stop()
