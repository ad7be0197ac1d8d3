"""Plot the errors of a model's modules over its depth, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

from pom_export.parity.modules import ModuleResult

STYLE: Final = """
.depth { width: 100%; height: auto; font-size: 11px; } .depth text { fill: currentColor; opacity: .7; }
.depth .grid { stroke: var(--line); } .depth .out { fill: none; stroke: #1565c0; stroke-width: 1.5; }
.depth .bound { fill: none; stroke: currentColor; opacity: .5; stroke-dasharray: 4 3; }
.depth .own { fill: var(--ok); } .depth .wrong { fill: var(--bad); }
"""
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 900, 260, 48, 12, 24
# The smallest error that is shown, and the largest: beyond them, all are the same to a reader.
_LEAST, _MOST = 1e-9, 1e3
Place = Callable[[int, float], tuple[float, float]]


def depth_plot(modules: Sequence[ModuleResult]) -> str:
    """Return an SVG of the errors over the calls of modules, in order, on a logarithmic scale.

    Args:
        modules: the calls. Those that were not compared are left out.
    """
    shown = [each for each in modules if each.error_out is not None]
    if not shown:
        return ""
    errors = [error for each in shown for error in (each.error_out, each.error, each.tolerance) if error is not None]
    low, high = (math.floor(math.log10(_within(min(errors)))), math.ceil(math.log10(_within(max(errors)))))
    high = max(high, low + 1)

    def place(index: int, error: float) -> tuple[float, float]:
        across = _LEFT + (index + 0.5) * (_WIDTH - _LEFT) / len(shown)
        share = (high - math.log10(_within(error))) / (high - low)
        return across, _TOP + share * (_HEIGHT - _TOP - _BOTTOM)

    return "".join(
        [
            f'<svg class="depth" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">',
            "<title>Relative errors of modules over the depth of the model</title>",
            *_grid(low, high, place),
            _line("bound", ((index, each.tolerance) for index, each in enumerate(shown)), place),
            _line("out", ((index, each.error_out) for index, each in enumerate(shown)), place),
            *(_dot(index, each, place) for index, each in enumerate(shown)),
            f'<text x="{_LEFT}" y="{_HEIGHT - 6}">{escape(shown[0].name)}</text>',
            f'<text x="{_WIDTH}" y="{_HEIGHT - 6}" text-anchor="end">{escape(shown[-1].name)}</text>',
            "</svg>",
        ]
    )


def _within(error: float) -> float:
    return min(max(error, _LEAST), _MOST)


def _grid(low: int, high: int, place: Place) -> Iterable[str]:
    for power in range(low, high + 1):
        _, y = place(0, 10.0**power)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'


def _line(kind: str, points: Iterable[tuple[int, float | None]], place: Place) -> str:
    places = [place(index, error) for index, error in points if error is not None]
    return f'<polyline class="{kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>'


def _dot(index: int, each: ModuleResult, place: Place) -> str:
    if each.error is None:
        return ""
    x, y = place(index, each.error)
    kind = "own" if each.passed else "wrong"
    text = f"{each.name}: {each.error:.2e} by itself, bound {each.tolerance:.2e}, {each.error_out:.2e} in all"
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(text)}</title></circle>'
