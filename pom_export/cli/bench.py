"""`pom-export bench`."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import click

from pom_export.bench.options import BACKENDS, BenchOptions
from pom_export.cli.options import common_options
from pom_export.cli.output import say
from pom_export.cli.parameters import FILE, FOLDER, SIZES, Choice, Listed, Whole
from pom_export.cli.progress import stages


@click.command("bench")
@click.argument("model", type=FILE)
@click.option("--backends", type=Listed(Choice(BACKENDS)), help="Default: all available.")
@click.option("--tokens", type=SIZES, help="Sequence lengths; default: 256,1024,4096, or the file's fixed length.")
@click.option("--batch", type=SIZES, help="Batch sizes; default: 1, or the file's fixed size.")
@click.option("--threads", type=int, help="Threads per backend, pinned; default: the available processors.")
@click.option("--repeats", type=Whole(1), help="Timed rounds; default: 5 to 50, as many as fit into 10 seconds.")
@click.option("--memory/--no-memory", default=True, show_default=True, help="Measure peak memory, in new processes.")
@click.option("-o", "--output", type=FOLDER, help="A folder for results.json and table.md.")
@common_options
def command(model: str, output: str | None, as_json: bool, verbose: bool, **options: Any) -> None:
    """Time an exported MODEL.onnx on every backend side by side, on random inputs.

    Backends: function (the file in ONNX Runtime without our library), kernel (with it), tensorrt (as an engine, on a
    GPU). Their outputs are compared before they are timed; the exit code is 1 if they differ.
    """
    from pom_export.bench.model_file import FileWorkload
    from pom_export.bench.running import bench
    from pom_export.bench.table import as_text
    from pom_export.bench.writing import results_folder, write_result

    workload = FileWorkload(model)
    given = BenchOptions(**{name: value for name, value in options.items() if value is not None})
    folder = contextlib.nullcontext() if output is None else results_folder(output, workload.path)
    shown = verbose or not as_json
    with folder as place, stages(f"reading {model}", shown=shown, moving=not as_json) as progress:
        result = bench(workload, given, progress=progress)
        if place is not None:
            write_result(result, place)
    if as_json:
        say(json.dumps(result.to_dict()))
    else:
        say(*as_text(result).splitlines())
