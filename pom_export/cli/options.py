"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pom_export.checkpoint.families import FAMILIES
from pom_export.cli.parameters import Choice, Whole
from pom_export.cli.progress import note

_Function = TypeVar("_Function", bound=Callable[..., Any])


def common_options(function: _Function) -> _Function:
    """Add --json, -q, -v and --debug."""
    for decorator in (
        click.option("--debug", is_flag=True, expose_value=False, callback=note, help="Show an error's traceback."),
        click.option("-v", "--verbose", is_flag=True, help="Show every stage, even with --json."),
        click.option(
            "-q", "--quiet", is_flag=True, expose_value=False, callback=note, help="Print results and errors only."
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    ):
        function = decorator(function)
    return function


weights_option = click.option(
    "--weights", help="Which of the checkpoint's sets of weights, such as ema; `inspect` lists them."
)


in_context_start_option = click.option(
    "--in-context-start",
    type=Whole(0),
    help="Block before which an image model inserts its in-context tokens; default: as published for its depth.",
)


def recognition_options(function: _Function) -> _Function:
    """Add options for what cannot be inferred from some checkpoints' shapes."""
    for decorator in (
        weights_option,
        in_context_start_option,
        click.option("--heads", type=Whole(1), help="Attention heads of a hybrid, if not known from shapes."),
        click.option("--degree", type=Whole(1), help="Degree, if not known from shapes (v1, nanogpt-pom)."),
        click.option("--family", type=Choice(FAMILIES), help="Family of the checkpoint; default: recognised."),
    ):
        function = decorator(function)
    return function
