"""Plot a server: tokens a second, time between tokens, and what the streams keep, over the number of streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.plots import MIB, draw, draw_limit, finish, has_memory, new_figure, save
from pom_export.bench.results import BenchResult, Point

SERVING_FILES: Final = ("serving.png", "serving.svg")


def draw_serving(result: BenchResult, folder: Path) -> None:
    """Draw tokens a second, the median and the 99 % of the time between two tokens, and the size of all streams."""
    figure, panels = new_figure(2 + has_memory(result))
    speeds, times = panels[:2]
    _lines(speeds, result, lambda point, name: 1e3 * point.tokens / point.timings[name].median_ms)
    _finish(speeds, result, "tokens a second, of all streams")
    _lines(times, result, lambda point, name: point.timings[name].median_ms)
    for name in result.backends:
        timed = [point for point in result.points if name in point.timings]
        draw_limit(times, name, ([p.tokens for p in timed], [p.timings[name].p99_ms for p in timed]))
    _finish(times, result, "ms between two tokens: median, 99 % (dotted)")
    for sizes in panels[2:]:
        _lines(sizes, result, _kept)
        _finish(sizes, result, "MiB that all streams keep")
    save(figure, panels, result, [folder / name for name in SERVING_FILES])


def _kept(point: Point, name: str) -> float | None:
    memory = point.memory.get(name)
    return None if memory is None else point.tokens * memory.tensor_bytes / MIB


def _lines(panel: Any, result: BenchResult, value: Callable[[Point, str], float | None]) -> None:
    """Draw a line for each backend, where it ran."""
    for name in result.backends:
        found = [(point.tokens, value(point, name)) for point in result.points if name in point.timings]
        known = {streams: number for streams, number in found if number is not None}
        draw(panel, name, (list(known), list(known.values())))


def _finish(panel: Any, result: BenchResult, label: str) -> None:
    finish(panel, {point.tokens: str(point.tokens) for point in result.points}, label, "streams")
