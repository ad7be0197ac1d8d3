"""Format a benchmark as a table, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pom_export.bench.results import BenchResult, Point, Rows
from pom_export.bench.statistics import Summary

_NONE: Final = "-"
_MIB: Final = 1 << 20


def latency_rows(result: BenchResult) -> Rows:
    """Return the header, and one row a size: milliseconds of every backend, then ratios."""
    pairs = [pair for pair in result.labels.ratios if all(name in result.backends for name in pair)]
    rows = [[*_size_header(result), *result.backends, *(f"{name}/{to}" for name, to in pairs)]]
    for point in result.points:
        times = [point.timings.get(name) for name in result.backends]
        cells = [_NONE if summary is None else milliseconds(summary.median_ms) for summary in times]
        ratios = [point.ratio(name, to) for name, to in pairs]
        rows.append([*_sizes(result, point), *cells, *(_NONE if r is None else f"{r:.2f}x" for r in ratios)])
    return rows


def spread_rows(result: BenchResult) -> Rows:
    """Return the header, and one row a size: the quartiles of each backend, and how many runs there were."""
    rows = [[*_size_header(result), *result.backends]]
    for point in result.points:
        rows.append([*_sizes(result, point), *(_spread(point.timings.get(name)) for name in result.backends)])
    return rows


def memory_rows(result: BenchResult) -> Rows:
    """Return the header, and one row a size: MiB by which a backend's process grows, then MiB that it holds."""
    held = [name for name in result.labels.held if name in result.backends]
    header = [*(f"{name} grows" for name in result.backends), *(f"{name} holds" for name in held)]
    rows = [[*_size_header(result), *header]]
    for point in result.points:
        growths = [point.memory[name].growth_bytes if name in point.memory else None for name in result.backends]
        tensors = [point.memory[name].tensor_bytes if name in point.memory else None for name in held]
        rows.append([*_sizes(result, point), *map(mebibytes, (*growths, *tensors))])
    return rows


def milliseconds(value: float) -> str:
    """Return three digits or more, and never an exponent."""
    decimals = next(places for limit, places in ((1, 3), (10, 2), (100, 1), (float("inf"), 0)) if value < limit)
    return f"{value:.{decimals}f}"


def mebibytes(count: int | None) -> str:
    """Return a size in MiB, with more digits where it is small."""
    if count is None:
        return _NONE
    return f"{count / _MIB:.1f}" if count >= _MIB or not count else f"{count / _MIB:.3f}"


def aligned(rows: Rows) -> str:
    """Return rows as text, numbers right under their names."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(lines)


def markdown(rows: Rows) -> str:
    """Return rows as a Markdown table."""
    header, *body = rows
    lines = [header, ["---:"] * len(header), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def notes(result: BenchResult) -> list[str]:
    """Return what a reader of the tables must know."""
    machine, options, tokens = result.machine, result.options, result.labels.tokens
    batches = ", ".join(map(str, dict.fromkeys(point.batch for point in result.points)))
    threads = f"{options['threads']} thread{'s' if options['threads'] != 1 else ''}"
    skipped = [(point, name, why) for point in result.points for name, why in point.skipped.items()]
    return [
        f"{result.target}; {options['dtype']}; batch {batches}",
        f"{machine['processor']}, {threads}; torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}, kernel {machine['pom_cpu_kernel']}; {machine['date'][:10]}",
        *result.notes,
        *(f"not run: {name}: {why}" for name, why in result.not_run.items()),
        *(f"not run at batch {point.batch}, {tokens} {point.tokens}: {name}: {why}" for point, name, why in skipped),
    ]


def as_text(result: BenchResult) -> str:
    """Return the whole result for a terminal."""
    parts = [f"{title}\n{aligned(rows)}\n" for title, rows in _tables(result).items()]
    return "\n".join([*parts, *notes(result)])


def as_page(result: BenchResult) -> str:
    """Return the whole result in Markdown."""
    tables = _tables(result)
    tables["spread: lower to upper quartile, runs"] = spread_rows(result)
    parts = [f"{title[0].upper()}{title[1:]}.\n\n{markdown(rows)}" for title, rows in tables.items()]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(result))]) + "\n"


def _tables(result: BenchResult) -> dict[str, Rows]:
    memory = {result.labels.memory: memory_rows(result)} if result.has_memory() else {}
    return {result.labels.unit: latency_rows(result), **memory, **result.tables}


def _spread(summary: Summary | None) -> str:
    if summary is None:
        return _NONE
    return f"{milliseconds(summary.lower_ms)} to {milliseconds(summary.upper_ms)}, {summary.runs}"


def _size_header(result: BenchResult) -> Sequence[str]:
    return ("batch", result.labels.tokens) if _many_batches(result) else (result.labels.tokens,)


def _sizes(result: BenchResult, point: Point) -> Sequence[str]:
    return (str(point.batch), str(point.tokens)) if _many_batches(result) else (str(point.tokens),)


def _many_batches(result: BenchResult) -> bool:
    return len({point.batch for point in result.points}) > 1
