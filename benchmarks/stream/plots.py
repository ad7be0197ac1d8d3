"""Plot a stream: time per token, and what a sequence keeps, over the number of tokens before."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from benchmarks.names import ATTENTION, ATTENTION_SHARED, FUNCTION, KERNEL
from benchmarks.plots import MIB, draw, draw_band, finish, has_memory, new_figure, save
from pom_export.bench.results import BenchResult

_LABELS: Final = {
    FUNCTION: "PoM, standard ops",
    KERNEL: "PoM, our kernel",
    ATTENTION: "attention, cache copied",
    ATTENTION_SHARED: "attention, cache in place",
}
# Backends that keep the same, of which the first is drawn, and what they keep.
_KEPT: Final = (((KERNEL, FUNCTION), "sums of PoM"), ((ATTENTION, ATTENTION_SHARED), "keys and values"))
STREAM_FILES: Final = ("stream.png", "stream.svg")
_UNITS: Final = ((1 << 20, "M"), (1 << 10, "k"))


def draw_stream(result: BenchResult, folder: Path) -> None:
    """Draw medians with quartiles as a band and, if they were measured, the sizes of states and caches."""
    figure, panels = new_figure(1 + has_memory(result))
    times, ticks = panels[0], {point.tokens: _short(point.tokens) for point in result.points}
    for name in result.backends:
        timed = {point.tokens: point.timings[name] for point in result.points if name in point.timings}
        draw(times, name, (list(timed), [summary.median_ms for summary in timed.values()]), _LABELS[name])
        draw_band(times, name, timed)
    finish(times, ticks, "milliseconds per token, median", "tokens before")
    for sizes in panels[1:]:
        _draw_sizes(sizes, result)
        finish(sizes, ticks, "MiB that a sequence keeps", "tokens before")
    save(figure, panels, result, [folder / name for name in STREAM_FILES])


def _draw_sizes(panel: Any, result: BenchResult) -> None:
    """Draw what a sequence keeps, once for backends that keep the same, with a label at the last point."""
    for names, what in _KEPT:
        memory = [
            (point.tokens, point.memory[name]) for name in names for point in result.points if name in point.memory
        ]
        held = {tokens: found.tensor_bytes / MIB for tokens, found in memory}
        name = next((name for name in names if name in result.backends), None)
        if name is not None and held:
            draw(panel, name, (list(held), list(held.values())), _LABELS[name])
            panel.annotate(
                what, list(held.items())[-1], (-8, 6), textcoords="offset points", horizontalalignment="right"
            )


def _short(count: int) -> str:
    """Format a number of tokens, with a suffix if that is exact."""
    for size, suffix in _UNITS:
        if count >= size and count % size == 0:
            return f"{count // size}{suffix}"
    return str(count)
