"""Rerun the benchmarks of docs/benchmarks, and hold them to the project's bars.

    python -m benchmarks.project [-o docs/benchmarks] [RUN...]     # or: make bench

Runs: layer-none, layer-causal, layer-8-heads, long-causal, stream, image; default: all, then the instructions of the
native kernels.
Use a machine on which nothing else runs. Exit code 1 when a bar fails.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks.instructions import check_instructions
from pom_export import interrupts
from pom_export.bench.bars import CAUSAL, HEADS, IMAGE, LONG, MEAN, STREAM, Bar, check_bars
from pom_export.bench.options import KERNEL, MATMUL, BenchOptions
from pom_export.bench.results import BenchResult
from pom_export.bench.running import bench
from pom_export.bench.stream.results import StreamResult
from pom_export.bench.stream.table import step_rows
from pom_export.bench.table import aligned, latency_rows
from pom_export.bench.targets import Target, find_target
from pom_export.bench.writing import results_folder
from pom_export.errors import InputError, PomExportError

TOKENS = (256, 1024, 4096, 16384)
LONG_TOKENS = (8192, 16384, 32768, 65536, 131072)
RUNS: dict[str, tuple[Target, BenchOptions]] = {
    MEAN: (find_target("layer", mask="none"), BenchOptions(tokens=TOKENS)),
    CAUSAL: (find_target("layer", mask="causal"), BenchOptions(tokens=TOKENS)),
    HEADS: (find_target("layer-8-heads", mask="none"), BenchOptions(tokens=TOKENS)),
    LONG: (find_target("layer", mask="causal"), BenchOptions(backends=(KERNEL, MATMUL), tokens=LONG_TOKENS)),
    STREAM: (find_target("stream"), BenchOptions()),
    IMAGE: (find_target("image"), BenchOptions()),
}


def run(name: str, folder: Path) -> BenchResult | StreamResult:
    target, options = RUNS[name]
    click.echo(f"\n{name}", err=True)
    with results_folder(folder / name) as writer:
        result = bench(target, options, progress=lambda line: click.echo(f"  {line}", err=True))
        writer.write(result)
    rows = step_rows(result) if isinstance(result, StreamResult) else latency_rows(result)
    click.echo(f"\n{name}: {result.target}; milliseconds, medians\n{aligned(rows)}")
    return result


def report(bars: list[Bar], guard: list[str], folder: Path, names: tuple[str, ...]) -> None:
    click.echo("\n" + "\n".join(map(str, bars)))
    click.echo("\n" + "\n".join(guard))
    click.echo("\nresults: " + ", ".join(str(folder / name) for name in names))


@click.command(help=__doc__)
@click.argument("names", nargs=-1, metavar="RUN...")
@click.option("-o", "--output", default="docs/benchmarks", show_default=True, help="Where the folders of the runs go.")
def main(names: tuple[str, ...], output: str) -> None:
    interrupts.listen()
    folder = Path(output)
    try:
        if unknown := [name for name in names if name not in RUNS]:
            raise InputError(f"unknown run {unknown[0]!r}", f"Choose of {', '.join(RUNS)}")
        folder.mkdir(parents=True, exist_ok=True)
        chosen = names or tuple(RUNS)
        bars = check_bars({name: run(name, folder) for name in chosen})
        guard = [] if names else check_instructions()
    except PomExportError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    report(bars, [line for line, _ in guard], folder, chosen)
    sys.exit(0 if all(bar.passed for bar in bars) and all(passed for _, passed in guard) else 1)


if __name__ == "__main__":
    main()
