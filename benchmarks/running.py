"""Run a benchmark and write numbers, table and plots to a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.plots import SIZES_FILES, draw_sizes, require_matplotlib
from benchmarks.serving.plots import SERVING_FILES, draw_serving
from benchmarks.stream.plots import STREAM_FILES, draw_stream
from pom_export.api.progress import Progress
from pom_export.bench.options import BenchOptions
from pom_export.bench.results import BenchResult
from pom_export.bench.running import bench
from pom_export.bench.workload import Workload
from pom_export.bench.writing import results_folder, write_result


@dataclass(frozen=True)
class Plots:
    """How to draw the results of a kind of workload.

    Attributes:
        draw: draws results into a folder.
        files: names of the files that it can write.
    """

    draw: Callable[[BenchResult, Path], None]
    files: Sequence[str]


SIZES_PLOTS: Final = Plots(draw_sizes, SIZES_FILES)
STREAM_PLOTS: Final = Plots(draw_stream, STREAM_FILES)
SERVING_PLOTS: Final = Plots(draw_serving, SERVING_FILES)


def run_benchmark(
    workload: Workload, options: BenchOptions, progress: Progress, output: str | Path | None, plots: Plots | None
) -> BenchResult:
    """Time a workload, and write its files to a folder if one is given.

    Args:
        workload: what to time.
        options: how to time it.
        progress: called with one line per stage.
        output: the folder, or None.
        plots: how to draw the result; None: not at all.

    Raises:
        InputError: see `pom_export.bench.running.bench`, and `results_folder`.
        MissingDependencyError: plots were requested, and matplotlib is not installed.
        ParityError: backends that compute the same disagree.
    """
    if output is None:
        return bench(workload, options, progress=progress)
    if plots is not None:
        require_matplotlib()
    with results_folder(output, more=() if plots is None else plots.files) as folder:
        result = bench(workload, options, progress=progress)
        write_result(result, folder)
        if plots is not None:
            plots.draw(result, folder)
    return result
