"""The command line of the project's benchmarks: python -m benchmarks layer|stream|serving|image|project."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from benchmarks.image.shape import ImageShape
from benchmarks.layer.target import MASKS
from benchmarks.names import IMAGE_BACKENDS, LAYER_BACKENDS, SERVING_BACKENDS, STREAM_BACKENDS
from benchmarks.running import SERVING_PLOTS, SIZES_PLOTS, STREAM_PLOTS, Plots, run_benchmark
from benchmarks.stream.models import STREAM_REPEATS, StreamShape
from pom_export import interrupts
from pom_export.bench.options import BenchOptions
from pom_export.bench.table import as_text
from pom_export.bench.workload import Workload
from pom_export.checkpoint.families import FAMILIES
from pom_export.cli.parameters import FOLDER, SIZES, Choice, Listed, Whole
from pom_export.errors import PomExportError

_INTERRUPTED: Final = 130
_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHAPE: Final = {
    "dim": "Model width",
    "degree": "Degree of the polynomial",
    "expand": "Channels of a mixer per model dimension",
    "heads": "Gate values per token of a mixer",
}


def how(
    backends: Sequence[str],
    tokens: str,
    *,
    batch: bool = True,
    repeats: int | None = None,
    sizes: str = "--tokens",
) -> Callable[[_Command], _Command]:
    """Return a decorator that adds the options for timing.

    Args:
        backends: choices of --backends.
        tokens: help of the option for sizes, with the default.
        batch: whether to add --batch.
        repeats: default of --repeats; None: as many as fit into --budget, which is added.
        sizes: the option for sizes.
    """
    rounds = "Timed rounds." if repeats else "Timed rounds; default: 5 to 50, as many as fit into --budget."
    budget = click.option(
        "--budget", "budget_s", type=click.FloatRange(0), default=10.0, show_default=True,
        help="Seconds to time at each size.",
    )  # fmt: skip
    options = [
        click.option("--backends", type=Listed(Choice(backends)), help="Default: all that apply and are available."),
        click.option(sizes, "tokens", type=SIZES, help=tokens),
        *([click.option("--batch", type=SIZES, help="Batch sizes; default: 1.")] if batch else []),
        click.option("--threads", type=int, help="Threads per backend, pinned; default: the available processors."),
        click.option("--warmup", type=Whole(0), default=2, show_default=True, help="Untimed rounds."),
        click.option("--repeats", type=Whole(1), default=repeats, show_default=True, help=rounds),
        *([] if repeats else [budget]),
        click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of random weights and inputs."),
        click.option(
            "--memory/--no-memory", default=True, show_default=True, help="Also measure memory, in new processes."
        ),
        click.option("--plots/--no-plots", default=True, show_default=True, help="Write plots to -o, with matplotlib."),
        click.option("-o", "--output", type=FOLDER, help="A folder for results.json, table.md and the plots."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
    ]

    def decorate(function: _Command) -> _Command:
        return functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)

    return decorate


def model_shape(shape: ImageShape | StreamShape) -> Callable[[_Command], _Command]:
    """Return a decorator that adds options for the hyper-parameters of a model, with a shape's defaults."""

    def decorate(function: _Command) -> _Command:
        for name, text in reversed(_SHAPE.items()):
            option = click.option(f"--{name}", default=getattr(shape, name), show_default=True, help=f"{text}.")
            function = option(function)
        return function

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Time PoM side by side with what it replaces. See benchmarks/README.md."""


@cli.command()
@click.argument("target", default="layer")
@click.option("--mask", type=Choice(MASKS), help="Default: the model's own; none for a layer.")
@click.option("--family", type=Choice(FAMILIES), help="Family of a checkpoint; default: recognised.")
@click.option("--weights", help="Which of a checkpoint's sets of weights, such as ema.")
@click.option("--roofline/--no-roofline", default=True, show_default=True, help="Also measure the machine's limits.")
@click.option("--dim", type=int, help="Width of a layer; default: 512.")
@click.option("--degree", type=int, help="Degree of the polynomial; default: 3, or the checkpoint's.")
@click.option("--expand", type=int, help="Channels of a layer per model dimension; default: 2.")
@click.option("--heads", type=int, help="Gate values per token; default: one per channel, 8 for layer-8-heads.")
@how(LAYER_BACKENDS, "Sequence lengths; default: 256,1024,4096, or TARGET's fixed length.")
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
    """Time TARGET: layer (default; one gate per channel), layer-8-heads, or a checkpoint.

    Backends: torch (the published algorithm in eager PyTorch), torch-compile, plain (exported to standard ops),
    function (our export without our library), kernel (with it), attention (of the same width), matmul (only the matrix
    products: the lower bound), tensorrt (on a GPU).
    """
    from benchmarks.layer.target import find_target
    from benchmarks.layer.workload import LayerWorkload

    found = find_target(
        target, mask=mask, dim=dim, degree=degree, expand=expand, heads=heads, family=family, weights=weights
    )
    _run(LayerWorkload(found, measures_roofline=roofline), SIZES_PLOTS, **given)


@cli.command()
@model_shape(StreamShape())
@how(
    STREAM_BACKENDS, "Numbers of tokens before the timed one; default: 1,128,1024,8192,32768,131072,1048576.",
    batch=False, repeats=STREAM_REPEATS,
)  # fmt: skip
def stream(dim: int, degree: int, expand: int, heads: int, **given: Any) -> None:
    """Time a language model of 4 layers token by token.

    Backends: function and kernel (our stateful export), attention (instead of mixers; each step copies its cache of
    keys and values), attention-shared (ONNX Runtime's GroupQueryAttention, which writes its cache in place).
    """
    from benchmarks.stream.workload import StreamWorkload

    _run(StreamWorkload(StreamShape(dim, degree, expand, heads)), STREAM_PLOTS, **given)


@cli.command()
@model_shape(StreamShape())
@how(SERVING_BACKENDS, "Numbers of streams; default: 1,8,64,256.", batch=False, sizes="--streams")
def serving(dim: int, degree: int, expand: int, heads: int, **given: Any) -> None:
    """Time the next token of many streams of a language model of 4 layers.

    Backends: pool (a StreamPool), sessions (a StreamingSession for each stream), attention-1k and attention-8k
    (attention instead of mixers, in one batch, after so many tokens each).
    """
    from benchmarks.serving.workload import ServingWorkload

    _run(ServingWorkload(StreamShape(dim, degree, expand, heads)), SERVING_PLOTS, **given)


@cli.command()
@model_shape(ImageShape())
@how(IMAGE_BACKENDS, "Numbers of patches, which must be squares; default: 256,1024,4096.")
def image(dim: int, degree: int, expand: int, heads: int, **given: Any) -> None:
    """Time one call of an image model (JiT) of 4 blocks.

    Backends: function and kernel (our export), attention (instead of mixers).
    """
    from benchmarks.image.workload import ImageWorkload

    _run(ImageWorkload(ImageShape(dim, degree, expand, heads)), SIZES_PLOTS, **given)


@cli.command()
@click.argument("names", nargs=-1, metavar="RUN...")
@click.option("-o", "--output", default="docs/benchmarks", show_default=True, help="Where the folders of the runs go.")
def project(names: tuple[str, ...], output: str) -> None:
    """Rerun docs/benchmarks, and check the results against the project's limits (`make bench`).

    Runs: layer-none, layer-causal, layer-8-heads, long-causal, stream, serving, image; default: all, and then the
    instruction counts of the native kernels. Use a machine on which nothing else is running. The exit code is 1 if a
    limit is exceeded.
    """
    from benchmarks.project import run_project

    if not run_project(names, Path(output)):
        raise click.exceptions.Exit(1)


def _run(workload: Workload, kind: Plots, *, plots: bool, output: str | None, as_json: bool, **given: Any) -> None:
    options = BenchOptions(**{name: value for name, value in given.items() if value is not None})
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
