"""What commands share: the common options, results on stdout, progress on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])
_KIB = 1024


def common_options(function: _Function) -> _Function:
    """Add --json, -v and --debug; `--debug` is read by `pom_export.cli.main`."""
    for decorator in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the trace of an error."),
        click.option("-v", "--verbose", is_flag=True, help="Show every stage."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    ):
        function = decorator(function)
    return function


def recognition_options(function: _Function) -> _Function:
    """Add what the shapes of some checkpoints can't tell."""
    for decorator in (
        click.option("--heads", type=click.IntRange(1), help="Attention heads of a hybrid, where shapes don't tell."),
        click.option("--degree", type=click.IntRange(1), help="Polynomial degree, where shapes don't tell it (v1)."),
        click.option("--family", help="Family of the checkpoint, such as pom-v1; default: recognised."),
    ):
        function = decorator(function)
    return function


class Progress:
    """Writes stages with the elapsed time to stderr.

    Args:
        enabled: False keeps quiet.
    """

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._started = time.monotonic()

    def __call__(self, stage: str) -> None:  # noqa: D102 (the class says it)
        if self._enabled:
            click.echo(f"[{time.monotonic() - self._started:6.1f}s] {stage}", err=True)


def print_result(result: Mapping[str, Any], as_json: bool, lines: Sequence[tuple[str, str]]) -> None:
    """Print a result: as JSON, or as aligned `name  value` lines."""
    if as_json:
        click.echo(json.dumps(result))
        return
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        click.echo(f"{name:<{width}}  {value}")


def human_bytes(count: int) -> str:
    """Return a size with a binary unit."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIB or unit == "GiB":
            break
        size /= _KIB
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
