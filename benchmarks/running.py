"""Run a benchmark into a folder: numbers, table and plots."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.plots import SIZES_FILES, Place, draw_sizes, require_matplotlib
from benchmarks.stream.plots import STREAM_FILES, draw_stream
from pom_export.api.progress import Progress
from pom_export.bench.options import BenchOptions
from pom_export.bench.results import BenchResult
from pom_export.bench.running import bench
from pom_export.bench.workload import Workload
from pom_export.bench.writing import Writer, results_folder


@dataclass(frozen=True)
class Plots:
    """How results of a kind are drawn.

    Attributes:
        draw: draws them.
        files: names of what may be drawn.
    """

    draw: Callable[[BenchResult, Place], None]
    files: Sequence[str]


SIZES_PLOTS: Final = Plots(draw_sizes, SIZES_FILES)
STREAM_PLOTS: Final = Plots(draw_stream, STREAM_FILES)


def run_benchmark(
    workload: Workload, options: BenchOptions, progress: Progress, output: str | Path | None, plots: Plots | None
) -> BenchResult:
    """Time a workload, and fill a folder if one is given.

    Args:
        workload: what to time.
        options: how.
        progress: called with one line a stage.
        output: the folder.
        plots: what is drawn into it; None: nothing.

    Raises:
        InputError: see `pom_export.bench.running.bench`, and `results_folder`.
        MissingDependencyError: plots are asked for, and matplotlib is not installed.
        ParityError: backends that compute the same disagree.
    """
    with _folder(output, plots) as writer:
        result = bench(workload, options, progress=progress)
        if writer is not None:
            writer.write(result)
            if plots is not None:
                plots.draw(result, writer.place)
    return result


@contextlib.contextmanager
def _folder(output: str | Path | None, plots: Plots | None) -> Iterator[Writer | None]:
    if output is None:
        yield None
        return
    if plots is not None:
        require_matplotlib()
    with results_folder(output, more=() if plots is None else plots.files) as writer:
        yield writer
