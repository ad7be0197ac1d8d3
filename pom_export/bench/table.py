"""Format a benchmark as tables, for a terminal or a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from pom_export.bench.results import BenchResult, Point, Rows

_NONE: Final = "-"
_MIB: Final = 1 << 20


def latency_rows(result: BenchResult) -> Rows:
    """Return a header and one row per size: milliseconds of each backend, then ratios."""
    pairs = [pair for pair in result.labels.ratios if all(name in result.backends for name in pair)]

    def cells(point: Point) -> Iterator[str]:
        for name in result.backends:
            yield milliseconds(point.timings[name].median_ms) if name in point.timings else _NONE
        for pair in pairs:
            ratio = point.ratio(*pair)
            yield _NONE if ratio is None else f"{ratio:.2f}x"

    return _rows(result, [*result.backends, *(f"{name}/{to}" for name, to in pairs)], cells)


def spread_rows(result: BenchResult) -> Rows:
    """Return a header and one row per size: the quartiles of each backend, and the number of runs."""

    def cells(point: Point) -> Iterator[str]:
        for name in result.backends:
            timed = point.timings.get(name)
            yield (
                _NONE
                if timed is None
                else (f"{milliseconds(timed.lower_ms)} to {milliseconds(timed.upper_ms)}, {timed.runs}")
            )

    return _rows(result, result.backends, cells)


def memory_rows(result: BenchResult) -> Rows:
    """Return a header and one row per size: MiB by which each backend's process grows, then MiB of its tensors."""
    held = [name for name in result.labels.held if name in result.backends]

    def cells(point: Point) -> Iterator[str]:
        for name in result.backends:
            yield mebibytes(point.memory[name].growth_bytes if name in point.memory else None)
        for name in held:
            yield mebibytes(point.memory[name].tensor_bytes if name in point.memory else None)

    return _rows(result, [*(f"{name} grows" for name in result.backends), *(f"{name} holds" for name in held)], cells)


def _rows(result: BenchResult, header: Sequence[str], cells: Callable[[Point], Iterable[str]]) -> Rows:
    """Return a header and one row per size; the batch is a column if there are several."""
    many = len({point.batch for point in result.points}) > 1
    rows = [[*(["batch"] if many else []), result.labels.tokens, *header]]
    for point in result.points:
        rows.append([*([str(point.batch)] if many else []), str(point.tokens), *cells(point)])
    return rows


def milliseconds(value: float) -> str:
    """Format with at least three digits and no exponent."""
    decimals = next(places for limit, places in ((1, 3), (10, 2), (100, 1), (float("inf"), 0)) if value < limit)
    return f"{value:.{decimals}f}"


def mebibytes(count: int | None) -> str:
    """Format a size in MiB, with more digits if it is small."""
    if count is None:
        return _NONE
    return f"{count / _MIB:.1f}" if count >= _MIB or not count else f"{count / _MIB:.3f}"


def aligned(rows: Rows) -> str:
    """Return rows as text with right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _markdown(rows: Rows) -> str:
    header, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---:"] * len(header), *body))


def _notes(result: BenchResult) -> list[str]:
    """Return the lines below the tables."""
    machine, options, tokens = result.machine, result.options, result.labels.tokens
    batches = ", ".join(map(str, dict.fromkeys(point.batch for point in result.points)))
    threads = f"{options['threads']} thread{'s' if options['threads'] != 1 else ''}"
    skipped = [(point, name, why) for point in result.points for name, why in point.skipped.items()]
    kernel = f", kernel {machine['pom_cpu_kernel']}" if machine["pom_cpu_kernel"] else ""  # None: no library
    return [
        f"{result.target}; {options['dtype']}; batch {batches}",
        f"{machine['processor']}, {threads}; torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}{kernel}; {machine['date'][:10]}",
        *result.notes,
        *(f"not run: {name}: {why}" for name, why in result.not_run.items()),
        *(f"not run at batch {point.batch}, {tokens} {point.tokens}: {name}: {why}" for point, name, why in skipped),
    ]


def as_text(result: BenchResult) -> str:
    """Return the whole result for a terminal."""
    parts = [f"{title}\n{aligned(rows)}\n" for title, rows in _tables(result).items()]
    return "\n".join([*parts, *_notes(result)])


def as_page(result: BenchResult) -> str:
    """Return the whole result in Markdown."""
    tables = {**_tables(result), "spread: lower to upper quartile, runs": spread_rows(result)}
    parts = [f"{title[0].upper()}{title[1:]}.\n\n{_markdown(rows)}" for title, rows in tables.items()]
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in _notes(result))]) + "\n"


def _tables(result: BenchResult) -> dict[str, Rows]:
    measured = any(point.memory for point in result.points)
    memory = {result.labels.memory: memory_rows(result)} if measured else {}
    return {result.labels.unit: latency_rows(result), **memory, **result.tables}
