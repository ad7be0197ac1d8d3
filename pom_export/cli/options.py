"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from pom_export.checkpoint.families import FAMILIES
from pom_export.cli.parameters import FILE, Choice, Parsed, Whole, parse_static
from pom_export.cli.progress import note
from pom_export.graph.claims import MASKS
from pom_export.graph.opsets import OPSETS

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


def graph_options(function: _Function) -> _Function:
    """Add options for how a model becomes a graph; see `GraphOptions`."""
    static = "Fix batch and tokens; default: dynamic."
    mask = "padding is a (B, N) input, full a (B, T, N) input; default: the model's own."
    for decorator in (
        click.option("--static", type=Parsed(parse_static), metavar="BATCHxTOKENS", help=static),
        click.option("--block-causal", is_flag=True, help="With --stateful: every token sees its whole call."),
        click.option("--stateful", is_flag=True, help="Take and return the state between calls, for streaming."),
        click.option("--positions", is_flag=True, help="Make a rotary mixer's positions an input; 2-D mixers need it."),
        click.option("--cross", is_flag=True, help="Give the mixer a separate context input."),
        click.option("--mask", type=Choice(MASKS), help=mask),
    ):
        function = decorator(function)
    return function


opset_option = click.option(
    "--opset", type=Choice(OPSETS), help="Version of the standard ops; default: 20, or 22 for bfloat16."
)


optimize_option = click.option(
    "--optimize/--no-optimize", default=True, show_default=True,
    help="Rewrite products and gates around the aggregations.",
)  # fmt: skip


example_inputs_option = click.option(
    "--example-inputs", type=FILE, help="For a module: a .npz of inputs to trace it with, by name."
)


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
