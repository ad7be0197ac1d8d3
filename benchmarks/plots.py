"""Plot latency and memory over tokens on logarithmic axes; helpers that plots of a stream share."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.names import (
    ATTENTION,
    ATTENTION_1K,
    ATTENTION_8K,
    ATTENTION_SHARED,
    FUNCTION,
    GENAI,
    KERNEL,
    MATMUL,
    PLAIN,
    POOL,
    SESSIONS,
    TENSORRT,
    TORCH,
    TORCH_COMPILE,
)
from pom_export.bench.results import BenchResult, Point, Summary
from pom_export.errors import MissingDependencyError

MIB: Final = 1 << 20
# No program and no time, so that the same results give the same file; the title has the date.
_NO_METADATA = {".png": {"Software": None}, ".svg": dict.fromkeys(("Creator", "Date", "Format", "Type"))}
_TITLE_WIDTH = 110
_GRAY = "#555555"
# Okabe and Ito's colours, which colour-blind readers can distinguish; the markers are for printing in gray.
_STYLES = {
    TORCH: ("#E69F00", "o"),
    TORCH_COMPILE: ("#CC79A7", "s"),
    PLAIN: ("#56B4E9", "^"),
    FUNCTION: ("#009E73", "v"),
    KERNEL: ("#D55E00", "D"),
    ATTENTION: ("#0072B2", "P"),
    ATTENTION_SHARED: ("#CC79A7", "s"),
    MATMUL: (_GRAY, ""),
    TENSORRT: ("#000000", "X"),
    POOL: ("#D55E00", "D"),
    SESSIONS: ("#009E73", "v"),
    GENAI: ("#CC79A7", "s"),
    ATTENTION_1K: ("#56B4E9", "^"),
    ATTENTION_8K: ("#0072B2", "P"),
}
_OURS = (KERNEL, POOL)
_LABELS = {
    TORCH: "PyTorch, published code",
    TORCH_COMPILE: "the same, torch.compile",
    PLAIN: "the same, plain export",
    FUNCTION: "our export, standard ops",
    KERNEL: "our export, our kernel",
    ATTENTION: "attention of the same width",
    MATMUL: "its matrix products alone",
    TENSORRT: "our export, TensorRT",
    POOL: "PoM, a pool",
    SESSIONS: "PoM, a session a stream",
    GENAI: "PoM, onnxruntime-genai",
    ATTENTION_1K: "attention after 1k tokens",
    ATTENTION_8K: "attention after 8k tokens",
}
Curve = tuple[Sequence[int], Sequence[float]]
_LATENCY: Final = ("latency.png", "latency.svg")
_MEMORY: Final = "memory.png"
SIZES_FILES: Final = (*_LATENCY, _MEMORY)


def has_memory(result: BenchResult) -> bool:
    """Return whether memory was measured."""
    return any(point.memory for point in result.points)


def require_matplotlib() -> None:
    """Raise MissingDependencyError if plots cannot be drawn."""
    try:
        import matplotlib  # noqa: F401 (only whether it is there)
    except ImportError as error:
        raise MissingDependencyError(
            "plots need matplotlib, which is not installed", "pip install matplotlib, or give --no-plots"
        ) from error


def draw_sizes(result: BenchResult, folder: Path) -> None:
    """Draw time and, if it was measured, memory over tokens into files in a folder."""
    roofline = ("memory roofline of the layer", lambda point: point.facts.get("memory_roofline_ms"))
    _plot(result, [folder / name for name in _LATENCY], "milliseconds, median", _median, roofline, bands=True)
    if has_memory(result):
        held = ("weights, inputs, outputs", _tensors)
        _plot(result, [folder / _MEMORY], "MiB of peak memory beyond the loaded model", _growth, held)


def _plot(
    result: BenchResult,
    files: Sequence[Path],
    unit: str,
    value: Callable[[str, Point], float | None],
    limit: tuple[str, Callable[[Point], float | None]],
    *,
    bands: bool = False,
) -> None:
    """Draw a panel for each batch size: a line per backend, and a dotted line for a limit."""
    batches = list(dict.fromkeys(point.batch for point in result.points))
    figure, panels = new_figure(len(batches))
    for panel, batch in zip(panels, batches, strict=True):
        points = [point for point in result.points if point.batch == batch]
        for name in result.backends:
            draw(panel, name, _curve(points, partial(value, name)))
            if bands:
                draw_band(panel, name, {p.tokens: p.timings[name] for p in points if name in p.timings})
        label, limit_of = limit
        tokens, numbers = _curve(points, limit_of)
        if tokens:
            panel.plot(tokens, numbers, color=_GRAY, linestyle=":", linewidth=1.8, label=label)
        finish(panel, {point.tokens: str(point.tokens) for point in points}, unit)
        panel.set_title(f"batch {batch}" if len(batches) > 1 else "")
    save(figure, panels, result, files)


def new_figure(count: int) -> tuple[Any, Sequence[Any]]:
    """Return a figure and its panels, side by side."""
    require_matplotlib()
    from matplotlib.figure import Figure

    # Without pyplot, there is no window and no global state.
    figure = Figure(figsize=(5.2 * count + 3.0, 4.6), layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def _curve(points: Sequence[Point], value: Callable[[Point], float | None]) -> Curve:
    found = [(point.tokens, value(point)) for point in sorted(points, key=lambda point: point.tokens)]
    # A logarithmic axis cannot show 0.
    known = [(tokens, number) for tokens, number in found if number]
    return [tokens for tokens, _ in known], [number for _, number in known]


def _median(name: str, point: Point) -> float | None:
    return point.timings[name].median_ms if name in point.timings else None


def _growth(name: str, point: Point) -> float | None:
    memory = point.memory.get(name)
    return None if memory is None or memory.growth_bytes is None else memory.growth_bytes / MIB


def _tensors(point: Point) -> float | None:
    return point.memory[KERNEL].tensor_bytes / MIB if KERNEL in point.memory else None


def draw(panel: Any, name: str, curve: Curve, label: str | None = None) -> None:
    """Draw a backend's line; the label defaults to the backend's usual one."""
    if not curve[0]:
        return
    color, marker = _STYLES[name]
    ours = name in _OURS
    panel.plot(
        *curve,
        color=color,
        marker=marker,
        markersize=6 if ours else 5,
        linestyle="--" if name == MATMUL else "-",
        linewidth=2.6 if ours else 1.6,
        zorder=4 if ours else 3,
        label=label or _LABELS[name],
    )


def draw_limit(panel: Any, name: str, curve: Curve) -> None:
    """Draw a thin dotted line in a backend's colour."""
    panel.plot(*curve, color=_STYLES[name][0], linestyle=":", linewidth=1.2)


def draw_band(panel: Any, name: str, timed: Mapping[int, Summary]) -> None:
    """Draw a backend's quartiles over tokens as a band."""
    tokens = sorted(timed)
    lower, upper = ([getattr(timed[count], side) for count in tokens] for side in ("lower_ms", "upper_ms"))
    panel.fill_between(tokens, lower, upper, color=_STYLES[name][0], alpha=0.18, linewidth=0)


def finish(panel: Any, ticks: Mapping[int, str], label: str, across: str = "tokens") -> None:
    """Set up a panel's axes: the ticks at numbers of tokens, and the labels."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks(sorted(ticks), [ticks[count] for count in sorted(ticks)])
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel(across)
    panel.set_ylabel(label)
    panel.grid(visible=True, which="major", alpha=0.35)
    panel.spines[["top", "right"]].set_visible(False)


def save(figure: Any, panels: Sequence[Any], result: BenchResult, files: Sequence[Path]) -> None:
    """Write a figure, with a legend and a title."""
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside center right", frameon=False)
    machine = result.machine
    where = f"{machine['processor']}, {result.options['threads']} threads, {machine['date'][:10]}"
    title = "\n".join([*textwrap.wrap(result.target, _TITLE_WIDTH), where])
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=10)
    for file in files:
        figure.savefig(file, dpi=150, metadata=_NO_METADATA[file.suffix])
