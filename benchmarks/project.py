"""The runs of docs/benchmarks, and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from benchmarks.image.shape import ImageShape
from benchmarks.image.workload import ImageWorkload
from benchmarks.instructions import check_instructions
from benchmarks.layer.target import find_target
from benchmarks.layer.workload import LayerWorkload
from benchmarks.limits import Check, Limit, at_least, at_most, doublings, faster_everywhere, flat
from benchmarks.names import ATTENTION, ATTENTION_8K, KERNEL, MATMUL, PLAIN, POOL, SESSIONS, TORCH_COMPILE
from benchmarks.running import SERVING_PLOTS, SIZES_PLOTS, STREAM_PLOTS, Plots, run_benchmark
from benchmarks.serving.workload import ServingWorkload
from benchmarks.stream.models import STREAM_REPEATS, StreamShape
from benchmarks.stream.workload import StreamWorkload
from pom_export.bench.options import BenchOptions
from pom_export.bench.results import BenchResult
from pom_export.bench.table import aligned, latency_rows
from pom_export.bench.workload import Workload
from pom_export.errors import InputError

TOKENS: Final = (256, 1024, 4096, 16384)
LONG_TOKENS: Final = (8192, 16384, 32768, 65536, 131072)


def over_floor(limit: float) -> Check:
    """Return a check of our kernel's time divided by the matrix products', at the sizes where those dominate."""
    return at_most(KERNEL, MATMUL, dict.fromkeys(TOKENS[1:], limit))


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        workload: what to time.
        options: how to time it.
        checks: its limits.
        plots: how to draw it.
    """

    workload: Workload
    options: BenchOptions
    checks: Sequence[Check]
    plots: Plots = SIZES_PLOTS


def project_runs() -> dict[str, Run]:
    """Return the runs by the names of their folders."""
    beats_compiler = faster_everywhere(KERNEL, TORCH_COMPILE)
    mean, causal = (LayerWorkload(find_target("layer", mask=mask)) for mask in ("none", "causal"))
    options = BenchOptions(tokens=TOKENS)
    return {
        "layer-none": Run(mean, options, [over_floor(1.08), beats_compiler]),
        "layer-causal": Run(
            causal, options, [over_floor(1.08), at_least(PLAIN, KERNEL, {4096: 5.0, 16384: 15.0}), beats_compiler]
        ),
        "layer-8-heads": Run(
            LayerWorkload(find_target("layer-8-heads", mask="none")), options, [over_floor(0.6), beats_compiler]
        ),
        "long-causal": Run(
            LayerWorkload(find_target("layer", mask="causal")),
            BenchOptions(backends=(KERNEL, MATMUL), tokens=LONG_TOKENS),
            [doublings(2.1)],
        ),
        "stream": Run(StreamWorkload(StreamShape()), BenchOptions(repeats=STREAM_REPEATS), [flat(1.05)], STREAM_PLOTS),
        "serving": Run(
            ServingWorkload(StreamShape()),
            BenchOptions(),
            [at_least(SESSIONS, POOL, {8: 2.0, 64: 3.0}), at_least(ATTENTION_8K, POOL, {64: 5.0})],
            SERVING_PLOTS,
        ),
        "image": Run(ImageWorkload(ImageShape()), BenchOptions(), [at_least(ATTENTION, KERNEL, {4096: 2.0})]),
    }


def run_project(names: Sequence[str], folder: Path) -> bool:
    """Run benchmarks of the project, each into a subfolder; return whether all results are within the limits.

    Args:
        names: names of runs; if empty, all runs and then the instruction counts of the native kernels.
        folder: where the subfolders go; created if it is missing.

    Raises:
        InputError: a name is unknown, or a run failed.
    """
    runs = project_runs()
    if unknown := [name for name in names if name not in runs]:
        raise InputError(f"unknown run {unknown[0]!r}", f"Choose from {', '.join(runs)}")
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {name: runs[name] for name in names or runs}
    limits = [limit for name, run in chosen.items() for limit in _run(name, run, folder)]
    instructions = [] if names else check_instructions()
    _report(limits, [line for line, _ in instructions], [folder / name for name in chosen])
    return all(limit.passed for limit in limits) and all(passed for _, passed in instructions)


def _run(name: str, run: Run, folder: Path) -> list[Limit]:
    click.echo(f"\n{name}", err=True)
    result = run_benchmark(run.workload, run.options, _say, folder / name, run.plots)
    click.echo(f"\n{name}: {result.target}; {result.labels.unit}\n{aligned(latency_rows(result))}")
    return check_limits(name, run.checks, result)


def check_limits(name: str, checks: Sequence[Check], result: BenchResult) -> list[Limit]:
    """Return a run's limits with the values in its result."""
    return [limit for check in checks for limit in check(name, result)]


def _say(line: str) -> None:
    click.echo(f"  {line}", err=True)


def _report(limits: Sequence[Limit], instructions: Sequence[str], folders: Sequence[Path]) -> None:
    for lines in ([str(limit) for limit in limits], instructions, [f"results: {', '.join(map(str, folders))}"]):
        if lines:
            click.echo("\n" + "\n".join(lines))
