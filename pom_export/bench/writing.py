"""Write a benchmark into a folder: all of its files, or none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pom_export import interrupts
from pom_export.bench.plots import plot_latency, plot_memory, require_matplotlib
from pom_export.bench.results import BenchResult
from pom_export.bench.stream.plots import plot_stream
from pom_export.bench.stream.results import StreamResult
from pom_export.bench.stream.table import stream_page
from pom_export.bench.table import as_page, has_memory
from pom_export.errors import InputError
from pom_export.files import staged_output

RESULTS: Final = "results.json"
TABLE: Final = "table.md"
LATENCY: Final = ("latency.png", "latency.svg")
MEMORY: Final = "memory.png"
STREAM: Final = ("stream.png", "stream.svg")


class Writer:
    """Takes a benchmark's result and writes it beside the staged results.json."""

    def __init__(self, staged: Path, plots: bool) -> None:
        self._staged, self._plots = staged, plots

    def write(self, result: BenchResult | StreamResult) -> None:
        """Write results.json, table.md and the plots."""
        self._staged.write_text(json.dumps(result.to_dict(), indent=1) + "\n")
        page = stream_page(result) if isinstance(result, StreamResult) else as_page(result)
        self._staged.with_name(TABLE).write_text(page, encoding="utf-8")
        if not self._plots:
            return
        if isinstance(result, StreamResult):
            plot_stream(result, self._places(STREAM))
            return
        plot_latency(result, self._places(LATENCY))
        if has_memory(result):
            plot_memory(result, self._places((MEMORY,)))

    def _places(self, names: Sequence[str]) -> list[Path]:
        return [self._staged.with_name(name) for name in names]


@contextmanager
def results_folder(folder: str | os.PathLike[str], *sources: Path | None, plots: bool = True) -> Iterator[Writer]:
    """Yield what writes into a folder, which is made where it is missing; checked before anything is measured.

    Args:
        folder: where the files go; old ones of the same names are replaced.
        sources: files that are never replaced.
        plots: whether to draw.

    Raises:
        InputError: the folder cannot be made or written to, or is a file.
        MissingDependencyError: plots are asked for, and matplotlib is not installed.
    """
    if plots:
        require_matplotlib()
    place = Path(folder)
    made = _make(place)
    try:
        beside = [place / name for name in (TABLE, *LATENCY, MEMORY, *STREAM)]
        with staged_output(place / RESULTS, *sources, beside=beside, stale=lambda: [place / MEMORY]) as staged:
            yield Writer(staged, plots)
    except BaseException:
        with interrupts.held():
            if made and not any(place.iterdir()):
                place.rmdir()
        raise


def _make(place: Path) -> bool:
    """Make a folder where there is none; return whether that was done."""
    if place.exists() and not place.is_dir():
        raise InputError(f"output {place} is a file", "Name a folder")
    if place.is_dir():
        return False
    if not place.parent.exists():
        raise InputError(f"folder {place.parent} does not exist", f"Create it: mkdir -p {place.parent}")
    try:
        place.mkdir()
    except OSError as error:
        raise InputError(f"cannot make {place}: {error.strerror}", "Choose a writable folder") from error
    return True
