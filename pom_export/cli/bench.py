"""`pom-export bench`."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

import click

from pom_export.cli.options import common_options, in_context_start_option, weights_option
from pom_export.cli.output import say
from pom_export.cli.progress import Progress

_Stages = tuple[Callable[[str], None], Callable[[int, int], None]]


@click.command("bench")
@click.argument("target")
@click.option("--backends", help="Such as torch,plain,kernel,matmul; default: all that apply and are there.")
@click.option("--tokens", help="Sequence lengths; default: 256,1024,4096, of a stream 1 to 1048576.")
@click.option("--batch", help="Batch sizes; default: 1.")
@click.option("--threads", type=int, help="Of every backend, pinned; default: the processors that may be used.")
@click.option("--warmup", type=int, default=2, show_default=True, help="Untimed rounds.")
@click.option("--repeats", type=int, help="Timed rounds; default: 5 to 50, as --budget allows; 200 of a stream.")
@click.option("--budget", type=float, default=10.0, show_default=True, help="Seconds to time at one size.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of random weights and inputs.")
@click.option("--mask", help="none or causal; default: the model's own.")
@click.option("--dim", type=int, help="Width of a named layer, stream or image model.")
@click.option("--degree", type=int, help="Degree of a named layer, or what a checkpoint's shapes don't tell.")
@click.option("--expand", type=int, help="Channels of a named layer per model dimension.")
@click.option("--heads", type=int, help="Gates a token of a named layer, or what a hybrid's shapes don't tell.")
@click.option("--family", help="Family of the checkpoint, such as pom-v1; default: recognised.")
@in_context_start_option
@weights_option
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, in more processes.")
@click.option("--roofline/--no-roofline", default=True, show_default=True, help="Measure the machine's own limits.")
@click.option("--plots/--no-plots", default=True, show_default=True, help="Draw into the folder (needs matplotlib).")
@click.option("-o", "--output", help="A folder for results.json, table.md and the plots.")
@common_options
def command(
    target: str,
    backends: str | None,
    tokens: str | None,
    batch: str | None,
    threads: int | None,
    warmup: int,
    repeats: int | None,
    budget: float,
    seed: int,
    mask: str | None,
    dim: int | None,
    degree: int | None,
    expand: int | None,
    heads: int | None,
    family: str | None,
    in_context_start: int | None,
    weights: str | None,
    memory: bool,
    roofline: bool,
    plots: bool,
    output: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Time TARGET on every backend side by side.

    TARGET is an exported .onnx file, a checkpoint (as `export` takes it), or the name of a layer with random weights:
    layer (dim 512, degree 3, expand 2, a gate a channel) or layer-8-heads; or stream: a language model of 4 layers of
    dim 512 with random weights, token by token after contexts of --tokens; or image: one call of an image model (JiT)
    of 4 blocks of dim 512 with random weights, whose images are --tokens patches.

    Backends: torch (the published algorithm in eager PyTorch), torch-compile, plain (it exported to standard ops),
    function (our export without our library), kernel (with it), attention (of the same width), matmul (the matrix
    products alone: the floor), tensorrt (where a GPU is). All that compute the same are compared before they are
    timed; exit code 1 when they differ.

    Of a stream: function and kernel (our stateful export), attention (in the mixers' place, its cache of keys and
    values copied each step), attention-shared (ONNX Runtime's GroupQueryAttention, its cache written in place).
    """
    from pom_export.bench.options import BenchOptions, parse_sizes
    from pom_export.bench.running import bench
    from pom_export.bench.stream.results import StreamResult
    from pom_export.bench.stream.table import stream_text
    from pom_export.bench.table import as_text
    from pom_export.bench.targets import find_target
    from pom_export.bench.timing import Effort
    from pom_export.bench.writing import results_folder

    found = find_target(
        target,
        mask=mask,
        family=family,
        degree=degree,
        heads=heads,
        in_context_start=in_context_start,
        weights=weights,
        dim=dim,
        expand=expand,
    )
    options = BenchOptions(
        backends=None if backends is None else [name.strip() for name in backends.split(",")],
        tokens=None if tokens is None else parse_sizes(tokens, "--tokens"),
        batch=None if batch is None else parse_sizes(batch, "--batch"),
        threads=threads,
        effort=Effort(warmup, repeats, budget),
        seed=seed,
        memory=memory,
        roofline=roofline,
    )
    folder = contextlib.nullcontext() if output is None else results_folder(output, found.path, plots=plots)
    with folder as writer, _stages(verbose, as_json) as (progress, steps):
        result = bench(found, options, progress=progress, steps=steps)
        if writer is not None:
            writer.write(result)
    if as_json:
        say(json.dumps(result.to_dict()))
    else:
        say(*(stream_text(result) if isinstance(result, StreamResult) else as_text(result)).splitlines())


@contextlib.contextmanager
def _stages(verbose: bool, as_json: bool) -> Iterator[_Stages]:
    """Yield what tells the stages: lines, or a bar where stderr is a terminal and no lines were asked for."""
    lines = Progress(verbose or not as_json)
    if verbose or as_json or not sys.stderr.isatty():
        yield lines, lambda _done, _of: None
        return
    with click.progressbar(length=1, label="timing", file=sys.stderr, item_show_func=lambda stage: stage) as bar:

        def tell(stage: str) -> None:
            bar.update(0, stage)

        def step(done: int, of: int) -> None:
            bar.length = of
            bar.update(done - bar.pos)

        yield tell, step
