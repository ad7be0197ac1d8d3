"""A benchmark of a stream as a plot: time a token and what a sequence keeps, over the tokens before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pom_export.bench.options import ATTENTION, ATTENTION_SHARED, FUNCTION, KERNEL
from pom_export.bench.plots import MIB, draw, draw_band, finish, new_figure, save
from pom_export.bench.stream.results import StreamResult

_LABELS: Final = {
    FUNCTION: "PoM, standard ops",
    KERNEL: "PoM, our kernel",
    ATTENTION: "attention, cache copied",
    ATTENTION_SHARED: "attention, cache in place",
}
# Which of a kind is drawn, and what it keeps.
_KEPT: Final = (((KERNEL, FUNCTION), "sums of PoM"), ((ATTENTION, ATTENTION_SHARED), "keys and values"))
_UNITS: Final = ((1 << 20, "M"), (1 << 10, "k"))


def plot_stream(result: StreamResult, files: Sequence[Path]) -> None:
    """Draw medians, with quartiles as a band, beside the bytes of states and caches."""
    figure, panels = new_figure(2)
    times, sizes = panels
    for name in result.backends:
        timed = {point.tokens: point.timings[name] for point in result.points if name in point.timings}
        draw(times, name, (list(timed), [summary.median_ms for summary in timed.values()]), _LABELS[name])
        draw_band(times, name, timed)
    _draw_sizes(sizes, result)
    ticks = {point.tokens: _short(point.tokens) for point in result.points}
    finish(times, ticks, "milliseconds a token, median", "tokens before")
    finish(sizes, ticks, "MiB that a sequence keeps", "tokens before")
    save(figure, panels, result, files)


def _draw_sizes(panel: Any, result: StreamResult) -> None:
    """Draw what a sequence keeps, once for backends that keep the same, and write beside the last point what it is."""
    for names, what in _KEPT:
        name = next((name for name in names if name in result.backends), None)
        held = {point.tokens: count / MIB for point in result.points if (count := point.state_bytes.get(name or ""))}
        if name is not None and held:
            draw(panel, name, (list(held), list(held.values())), _LABELS[name])
            panel.annotate(
                what, list(held.items())[-1], (-8, 6), textcoords="offset points", horizontalalignment="right"
            )


def _short(count: int) -> str:
    """Return a number of tokens with a suffix where that is exact."""
    for size, suffix in _UNITS:
        if count >= size and count % size == 0:
            return f"{count // size}{suffix}"
    return str(count)
