"""A benchmark of a stream as a table, for a terminal and for a page."""

from __future__ import annotations

from pom_export.bench.options import ATTENTION, ATTENTION_SHARED, KERNEL, STREAM_BACKENDS
from pom_export.bench.stream.results import StreamResult
from pom_export.bench.table import Rows, aligned, machine_line, markdown, mebibytes, milliseconds, spreads

_NONE = "-"
_MIB = 1 << 20
_GROWN = ", and by how many a process that streams grows beyond one that has no context"
_TOKENS = "tokens before"
_PEERS = (ATTENTION, ATTENTION_SHARED)


def step_rows(result: StreamResult) -> Rows:
    """Return the header, and one row a context: milliseconds of every backend, then attention's by the kernel's."""
    peers = [name for name in _PEERS if name in result.backends and KERNEL in result.backends]
    rows = [[_TOKENS, *result.backends, *(f"{name}/{KERNEL}" for name in peers)]]
    for point in result.points:
        times = [point.timings.get(name) for name in result.backends]
        cells = [_NONE if found is None else milliseconds(found.median_ms) for found in times]
        ratios = [point.ratio(name, KERNEL) for name in peers]
        rows.append([str(point.tokens), *cells, *(_NONE if ratio is None else f"{ratio:.2f}x" for ratio in ratios)])
    return rows


def memory_rows(result: StreamResult) -> Rows:
    """Return the header, and one row a context: what a sequence keeps, and how far a process grows, by backend."""
    kinds = ("keeps", "grows") if has_memory(result) else ("keeps",)
    rows = [[_TOKENS, *(f"{name} {kind}" for kind in kinds for name in result.backends)]]
    for point in result.points:
        held = [point.state_bytes.get(name) for name in result.backends]
        memory = [point.memory.get(name) for name in result.backends] if has_memory(result) else []
        grown = [None if found is None else found.growth_bytes for found in memory]
        rows.append([str(point.tokens), *(_NONE if count is None else _fine(count) for count in (*held, *grown))])
    return rows


def prefill_rows(result: StreamResult) -> Rows:
    """Return the header, and one row a context: how long its tokens took, and what the process holds after them."""
    rows = [["tokens", "seconds", "tokens/s", "process MiB"]]
    for point in result.points:
        found = point.prefill
        if found is not None:
            speed = f"{point.tokens / found.seconds:.0f}" if found.seconds else _NONE
            rows.append([str(point.tokens), f"{found.seconds:.2f}", speed, mebibytes(found.resident_bytes)])
    return rows


def stream_notes(result: StreamResult) -> list[str]:
    """Return what a reader of the tables must know."""
    options = result.options
    first, last = result.points[0].tokens, result.points[-1].tokens
    lines = [
        f"{result.target}; {options['dtype']}",
        machine_line(result.machine, options),
    ]
    grown = {name: result.growth(name) for name in result.backends}
    lines += [
        f"{name}: a token after {last} takes {ratio:.2f} times as long as one after {first}"
        for name, ratio in grown.items()
        if ratio is not None and last != first
    ]
    lines += [f"{name}: {STREAM_BACKENDS[name]}" for name in result.backends]
    lines += [f"not run: {name}: {why}" for name, why in result.not_run.items()]
    lines += [
        f"not run after {point.tokens} tokens: {name}: {why}"
        for point in result.points
        for name, why in point.skipped.items()
    ]
    return lines


def stream_text(result: StreamResult) -> str:
    """Return the whole result for a terminal."""
    parts = ["milliseconds a token, medians", aligned(step_rows(result))]
    parts += ["", "MiB that a sequence keeps" + _GROWN * has_memory(result), aligned(memory_rows(result))]
    parts += ["", "taking in the tokens", aligned(prefill_rows(result))]
    return "\n".join([*parts, "", *stream_notes(result)])


def stream_page(result: StreamResult) -> str:
    """Return the whole result in Markdown."""
    parts = ["Milliseconds a token, medians.", markdown(step_rows(result)), "Spread: lower to upper quartile, runs."]
    parts.append(markdown(_spread_rows(result)))
    parts += [f"MiB that a sequence keeps{_GROWN * has_memory(result)}.", markdown(memory_rows(result))]
    parts += ["How the tokens were taken in, and what the process held just after.", markdown(prefill_rows(result))]
    parts.append("\n".join(f"- {line}" for line in stream_notes(result)))
    return "\n\n".join(parts) + "\n"


def _fine(count: int) -> str:
    """Return a size in MiB, with more digits where it is small."""
    return mebibytes(count) if count >= _MIB or not count else f"{count / _MIB:.3f}"


def has_memory(result: StreamResult) -> bool:
    """Return whether processes were measured."""
    return any(point.memory for point in result.points)


def _spread_rows(result: StreamResult) -> Rows:
    rows = [[_TOKENS, *result.backends]]
    for point in result.points:
        rows.append([str(point.tokens), *spreads(result.backends, point.timings)])
    return rows
