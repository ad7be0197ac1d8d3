"""Print results to stdout and messages to stderr, with text from files made harmless."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pom_export.cli.flags import in_flags
from pom_export.errors import InputError, printable

_KIB = 1024
_LONGEST_VALUE = 8000  # characters in a line of a result
# A result's lists of sentences, and the label of their lines.
_REMARKS = {"notes": "note", "not_run": "not run", "failed": "failed to run"}


def say(*lines: str) -> None:
    """Print lines on stdout, each made `printable`.

    A reader that has left is not a failure: nothing more can be printed, but the exit code still counts.

    Raises:
        InputError: stdout cannot be written.
    """
    try:
        click.echo("\n".join(printable(line, sys.maxsize) for line in lines))
    except BrokenPipeError:
        settle_stdout()
    except OSError as error:
        raise InputError(f"cannot write to stdout: {error.strerror}", "Check what it is redirected to") from error


def say_on_stderr(text: str) -> None:
    """Print on stderr, ignoring failures: no message there is worth ending a job for."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def on_terminal() -> bool:
    """Return whether stdout is a terminal; False if it is closed."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_stdout() -> bool:
    """Return whether stderr goes to the same place as stdout, as after 2>&1; False if either is closed."""
    if sys.stdout is None or sys.stderr is None:
        return False
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except OSError:  # not files
        return False


def terminal_text(text: str) -> str:
    """Return a model's text; on a terminal, control characters are shown as escapes."""
    if not on_terminal():
        return text
    return "".join(c if c in "\n\t" else printable(c) for c in text)


def settle_stdout() -> None:
    """Discard buffered output that stdout did not accept, which Python would try to write again at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_result(result: Mapping[str, Any], as_json: bool, lines: Sequence[tuple[str, str]]) -> None:
    """Print a result: as JSON, or as aligned `name  value` lines."""
    if as_json:
        remarks = {name: [in_flags(line) for line in result[name]] for name in _REMARKS if name in result}
        say(json.dumps({**result, **remarks}))
        return
    shown = [
        (printable(name), printable(in_flags(value) if name in _REMARKS.values() else value, _LONGEST_VALUE))
        for name, value in lines
    ]
    width = max(len(name) for name, _ in shown)
    say(*(f"{name:<{width}}  {value}" for name, value in shown))


def aggregations_line(aggregations: int, inlined: int) -> str:
    """Return the number of a file's aggregations, and of those that are standard operators in it."""
    if inlined and not aggregations:
        return f"0: standard operators compute the {inlined} of the original"
    return str(aggregations)


def human_bytes(count: int) -> str:
    """Return a size with a binary unit."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB or unit == "GiB":
            break
        size /= _KIB
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
