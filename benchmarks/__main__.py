"""The command line of the project's benchmarks: python -m benchmarks layer|stream|image|project."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from benchmarks.running import SIZES_PLOTS, STREAM_PLOTS, Plots, run_benchmark
from pom_export import interrupts
from pom_export.bench.options import BenchOptions, parse_names, parse_sizes
from pom_export.bench.table import as_text
from pom_export.bench.timing import Effort
from pom_export.bench.workload import Workload
from pom_export.errors import PomExportError

_INTERRUPTED: Final = 130
_Command = TypeVar("_Command", bound=Callable[..., Any])


def how(function: _Command) -> _Command:
    """Add the options that say how to time."""
    for decorator in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
        click.option("-o", "--output", help="A folder for results.json, table.md and the plots."),
        click.option("--plots/--no-plots", default=True, show_default=True, help="Draw (needs matplotlib)."),
        click.option("--memory/--no-memory", default=True, show_default=True, help="Measure memory too."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of random weights and inputs."),
        click.option("--budget", type=float, default=10.0, show_default=True, help="Seconds to time at one size."),
        click.option("--repeats", type=int, help="Timed rounds; default: 5 to 50, as --budget allows; stream: 200."),
        click.option("--warmup", type=int, default=2, show_default=True, help="Untimed rounds."),
        click.option("--threads", type=int, help="Of every backend, pinned; default: the usable processors."),
        click.option("--batch", help="Batch sizes; default: 1."),
        click.option("--tokens", help="Sequence lengths; default: 256,1024,4096; stream: 1 to 1048576."),
        click.option("--backends", help="A list such as kernel,matmul; default: all that apply and are there."),
    ):
        function = decorator(function)
    return function


def model_shape(function: _Command) -> _Command:
    """Add the hyper-parameters of what has random weights."""
    for decorator in (
        click.option("--heads", type=int, help="Gate values a token of a mixer."),
        click.option("--expand", type=int, help="Channels of a mixer per model dimension."),
        click.option("--degree", type=int, help="Degree of the polynomial."),
        click.option("--dim", type=int, help="Model width."),
    ):
        function = decorator(function)
    return function


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Time PoM side by side with what it replaces. See benchmarks/README.md."""


@cli.command()
@click.argument("target", default="layer")
@click.option("--mask", help="none or causal; default: the model's own, none for a layer.")
@click.option("--family", help="Family of a checkpoint, such as pom-v1; default: recognised.")
@click.option("--weights", help="Which of several sets of weights in a checkpoint.")
@click.option("--roofline/--no-roofline", default=True, show_default=True, help="Measure the machine's own limits.")
@model_shape
@how
def layer(
    target: str,
    mask: str | None,
    family: str | None,
    weights: str | None,
    roofline: bool,
    dim: int | None,
    degree: int | None,
    expand: int | None,
    heads: int | None,
    **given: Any,
) -> None:
    """Time TARGET: layer (dim 512, degree 3, expand 2, one gate per channel), layer-8-heads, or a checkpoint.

    Backends: torch (the published algorithm in eager PyTorch), torch-compile, plain (it exported to standard ops),
    function (our export without our library), kernel (with it), attention (of the same width), matmul (the matrix
    products alone: the floor), tensorrt (where a GPU is).
    """
    from benchmarks.layer.target import find_target
    from benchmarks.layer.workload import LayerWorkload

    found = find_target(
        target, mask=mask, dim=dim, degree=degree, expand=expand, heads=heads, family=family, weights=weights
    )
    _run(LayerWorkload(found, measures_roofline=roofline), SIZES_PLOTS, **given)


@cli.command()
@model_shape
@how
def stream(dim: int | None, degree: int | None, expand: int | None, heads: int | None, **given: Any) -> None:
    """Time a language model of 4 layers token by token, after contexts of --tokens.

    Backends: function and kernel (our stateful export), attention (in the mixers' place, its cache of keys and values
    copied each step), attention-shared (ONNX Runtime's GroupQueryAttention, its cache written in place).
    """
    from benchmarks.stream.models import StreamShape
    from benchmarks.stream.workload import StreamWorkload

    shape = StreamShape(**_given(dim=dim, degree=degree, expand=expand, heads=heads))
    _run(StreamWorkload(shape), STREAM_PLOTS, **given)


@cli.command()
@model_shape
@how
def image(dim: int | None, degree: int | None, expand: int | None, heads: int | None, **given: Any) -> None:
    """Time one call of an image model (JiT) of 4 blocks, whose images are --tokens patches.

    Backends: function and kernel (our export), attention (in the mixers' place).
    """
    from benchmarks.image.shape import ImageShape
    from benchmarks.image.workload import ImageWorkload

    shape = ImageShape(**_given(dim=dim, degree=degree, expand=expand, heads=heads))
    _run(ImageWorkload(shape), SIZES_PLOTS, **given)


@cli.command()
@click.argument("names", nargs=-1, metavar="RUN...")
@click.option("-o", "--output", default="docs/benchmarks", show_default=True, help="Where the folders of the runs go.")
def project(names: tuple[str, ...], output: str) -> None:
    """Rerun docs/benchmarks, and hold the results to the project's limits (`make bench`).

    Runs: layer-none, layer-causal, layer-8-heads, long-causal, stream, image; default: all, then the instructions of
    the native kernels. Use a machine on which nothing else runs. Exit code 1 when a limit is exceeded.
    """
    from benchmarks.project import run_project

    if not run_project(names, Path(output)):
        raise click.exceptions.Exit(1)


def _given(**shape: int | None) -> dict[str, int]:
    return {name: value for name, value in shape.items() if value is not None}


def _run(
    workload: Workload,
    kind: Plots,
    *,
    backends: str | None,
    tokens: str | None,
    batch: str | None,
    threads: int | None,
    warmup: int,
    repeats: int | None,
    budget: float,
    seed: int,
    memory: bool,
    plots: bool,
    output: str | None,
    as_json: bool,
) -> None:
    options = BenchOptions(
        backends=parse_names(backends),
        tokens=parse_sizes(tokens, "--tokens"),
        batch=parse_sizes(batch, "--batch"),
        threads=threads,
        effort=Effort(warmup, repeats, budget),
        seed=seed,
        memory=memory,
    )
    result = run_benchmark(workload, options, lambda line: click.echo(line, err=True), output, kind if plots else None)
    click.echo(json.dumps(result.to_dict()) if as_json else as_text(result))


def main(arguments: list[str]) -> int:
    """Run a command; return its exit code."""
    interrupts.listen()
    try:
        cli.main(arguments, prog_name="python -m benchmarks", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except PomExportError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return _INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
