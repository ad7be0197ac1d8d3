"""A benchmark as a table, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pom_export.bench.options import ATTENTION, KERNEL, MATMUL, PLAIN
from pom_export.bench.results import BenchResult, Memory, Point
from pom_export.bench.statistics import Summary

_NONE = "-"
_MIB = 1 << 20
_GIGA = 1e9
# Numerator and denominator of the columns behind the timings.
_RATIOS = ((KERNEL, MATMUL), (PLAIN, KERNEL), (ATTENTION, KERNEL))
Rows = list[list[str]]


def latency_rows(result: BenchResult) -> Rows:
    """Return the header, and one row a size: milliseconds of every backend, then ratios."""
    pairs = [pair for pair in _RATIOS if all(name in result.backends for name in pair)]
    header = [*_size_header(result), *result.backends, *(f"{name}/{to}" for name, to in pairs)]
    rows = [header]
    for point in result.points:
        times = [point.timings.get(name) for name in result.backends]
        cells = [_NONE if summary is None else milliseconds(summary.median_ms) for summary in times]
        ratios = [point.ratio(name, to) for name, to in pairs]
        rows.append([*_sizes(result, point), *cells, *(_NONE if r is None else f"{r:.2f}x" for r in ratios)])
    return rows


def memory_rows(result: BenchResult) -> Rows:
    """Return the header, and one row a size: MiB by which a backend's peak grows, then MiB of our export's tensors."""
    rows = [[*_size_header(result), *result.backends, "tensors"]]
    for point in result.points:
        found = [point.memory.get(name) for name in result.backends]
        tensors = next((memory for name, memory in point.memory.items() if name == KERNEL), None)
        held = _NONE if tensors is None else mebibytes(tensors.tensor_bytes)
        rows.append([*_sizes(result, point), *map(_growth, found), held])
    return rows


def milliseconds(value: float) -> str:
    """Return three digits or more, and never an exponent."""
    decimals = next(places for limit, places in ((1, 3), (10, 2), (100, 1), (float("inf"), 0)) if value < limit)
    return f"{value:.{decimals}f}"


def spreads(backends: Sequence[str], timings: Mapping[str, Summary]) -> list[str]:
    """Return the quartiles of each backend, and how many runs there were."""
    found = [timings.get(name) for name in backends]
    return [
        _NONE
        if summary is None
        else f"{milliseconds(summary.lower_ms)} to {milliseconds(summary.upper_ms)}, {summary.runs}"
        for summary in found
    ]


def mebibytes(count: int) -> str:
    """Return a size in MiB."""
    return f"{count / _MIB:.1f}"


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


def machine_line(machine: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return what the times depend on besides what was timed."""
    return (
        f"{machine['processor']}, {options['threads']} threads; torch {machine['torch']}, "
        f"ONNX Runtime {machine['onnxruntime']}, kernel {machine['pom_cpu_kernel']}; {machine['date'][:10]}"
    )


def notes(result: BenchResult) -> list[str]:
    """Return what a reader of the table must know."""
    options = result.options
    lines = [
        f"{result.target}; {options['dtype']}; batch "
        f"{', '.join(map(str, dict.fromkeys(point.batch for point in result.points)))}",
        machine_line(result.machine, options),
    ]
    if result.roofline is not None:
        first, last = result.roofline.bandwidths[0], result.roofline.bandwidths[-1]
        lines.append(
            f"the machine: {result.roofline.flops_per_s / _GIGA:.0f} GFLOP/s in matrix products; copies "
            f"{first.copy / _GIGA:.0f} GB/s at {first.bytes // _MIB} MiB, "
            f"{last.copy / _GIGA:.0f} GB/s at {last.bytes // _MIB} MiB"
        )
    lines += [f"not run: {name}: {why}" for name, why in result.not_run.items()]
    lines += [
        f"not run at batch {point.batch}, tokens {point.tokens}: {name}: {why}"
        for point in result.points
        for name, why in point.skipped.items()
    ]
    return lines


def as_text(result: BenchResult) -> str:
    """Return the whole result for a terminal."""
    parts = ["milliseconds, medians", aligned(latency_rows(result))]
    if has_memory(result):
        parts += ["", "MiB by which peak memory grows, and MiB of weights, inputs and outputs"]
        parts.append(aligned(memory_rows(result)))
    return "\n".join([*parts, "", *notes(result)])


def as_page(result: BenchResult) -> str:
    """Return the whole result in Markdown."""
    parts = ["Milliseconds, medians.", markdown(latency_rows(result)), "Spread: lower to upper quartile, runs."]
    parts.append(markdown(_spread_rows(result)))
    if has_memory(result):
        parts.append(
            "MiB by which the peak of resident memory over two runs exceeds what was resident with the model loaded "
            "and the inputs made; MiB of weights, inputs and outputs of our export."
        )
        parts.append(markdown(memory_rows(result)))
    parts.append("\n".join(f"- {line}" for line in notes(result)))
    return "\n\n".join(parts) + "\n"


def has_memory(result: BenchResult) -> bool:
    """Return whether memory was measured."""
    return any(point.memory for point in result.points)


def _spread_rows(result: BenchResult) -> Rows:
    rows = [[*_size_header(result), *result.backends]]
    for point in result.points:
        rows.append([*_sizes(result, point), *spreads(result.backends, point.timings)])
    return rows


def _growth(memory: Memory | None) -> str:
    return _NONE if memory is None or memory.growth_bytes is None else mebibytes(memory.growth_bytes)


def _size_header(result: BenchResult) -> Sequence[str]:
    return ("batch", "tokens") if _many_batches(result) else ("tokens",)


def _sizes(result: BenchResult, point: Point) -> Sequence[str]:
    return (str(point.batch), str(point.tokens)) if _many_batches(result) else (str(point.tokens),)


def _many_batches(result: BenchResult) -> bool:
    return len({point.batch for point in result.points}) > 1
