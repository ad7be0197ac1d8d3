"""What is printed, drawn and written of a stream."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pom_export.bench.results import BenchResult
from pom_export.bench.statistics import Summary
from pom_export.bench.stream.plots import _short
from pom_export.bench.stream.results import Prefill, StreamMemory, StreamPoint, StreamResult
from pom_export.bench.stream.table import memory_rows, prefill_rows, step_rows, stream_page, stream_text
from pom_export.bench.writing import results_folder

MIB = 1 << 20


def timed(milliseconds: float) -> Summary:
    return Summary(milliseconds, 0.9 * milliseconds, 1.2 * milliseconds, 0.8 * milliseconds, 200)


@pytest.fixture
def stream(result: BenchResult) -> StreamResult:
    """Two contexts on three backends, two of which are attention and did not run after the longer one."""
    why = "its cache is 16.0 GiB; it is timed up to 32768"
    points = [
        StreamPoint(
            1,
            {"kernel": timed(2), "attention": timed(5), "attention-shared": timed(1)},
            {"kernel": MIB // 16, "attention": 3 * MIB, "attention-shared": 3 * MIB},
            {"kernel": StreamMemory(90 * MIB, 0), "attention": StreamMemory(96 * MIB, 6 * MIB)},
            prefill=Prefill(0.5, 100 * MIB),
        ),
        StreamPoint(
            1 << 20,
            {"kernel": timed(2.02)},
            {"kernel": MIB // 16},
            skipped={"attention": why, "attention-shared": why},
            prefill=Prefill(100, 101 * MIB),
        ),
    ]
    backends = ["kernel", "attention", "attention-shared"]
    return StreamResult("a model", backends, {"torch": "no state"}, points, result.machine, result.options)


def test_the_tables(stream: StreamResult) -> None:
    assert step_rows(stream) == [
        ["tokens before", "kernel", "attention", "attention-shared", "attention/kernel", "attention-shared/kernel"],
        ["1", "2.00", "5.00", "1.00", "2.50x", "0.50x"],
        ["1048576", "2.02", "-", "-", "-", "-"],
    ]
    assert memory_rows(stream)[1:] == [
        ["1", "0.062", "3.0", "3.0", "0.0", "6.0", "-"],
        ["1048576", "0.062", "-", "-", "-", "-", "-"],
    ]
    assert prefill_rows(stream)[1:] == [["1", "0.50", "2", "100.0"], ["1048576", "100.00", "10486", "101.0"]]


def test_without_memory_there_is_what_a_sequence_keeps(stream: StreamResult) -> None:
    stream.points[0].memory = {}
    assert memory_rows(stream)[1] == ["1", "0.062", "3.0", "3.0"]


def test_text_and_page_say_how_flat_it_is_and_what_was_not_run(stream: StreamResult) -> None:
    for text in (stream_text(stream), stream_page(stream)):
        assert "kernel: a token after 1048576 takes 1.01 times as long as one after 1" in text
        assert "attention: a token after" not in text
        assert "not run: torch: no state" in text
        assert "not run after 1048576 tokens: attention: its cache is 16.0 GiB" in text
        assert "Some CPU, 2 threads" in text
    assert "1.80 to 2.40, 200" in stream_page(stream)


def test_json_holds_all(stream: StreamResult) -> None:
    parsed = json.loads(json.dumps(stream.to_dict()))
    assert parsed["last_over_first"] == {"kernel": 1.01, "attention": None, "attention-shared": None}
    first, last = parsed["points"]
    assert first["to_kernel"] == {"attention": 2.5, "attention-shared": 0.5}
    assert first["memory"]["attention"] == {"resident_bytes": 96 * MIB, "growth_bytes": 6 * MIB}
    assert first["state_bytes"]["kernel"] == MIB // 16
    assert last["prefill"] == {"seconds": 100, "resident_bytes": 101 * MIB}


def test_the_folder_holds_a_plot_and_leaves_others(stream: StreamResult, tmp_path: Path) -> None:
    with results_folder(tmp_path / "new") as writer:
        writer.write(stream)
    files = ["results.json", "stream.png", "stream.svg", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    assert "<svg" in (tmp_path / "new" / "stream.svg").read_text()
    assert (tmp_path / "new" / "stream.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("count", "text"), [(1, "1"), (128, "128"), (8192, "8k"), (1 << 20, "1M"), (1500, "1500")])
def test_ticks_are_short(count: int, text: str) -> None:
    assert _short(count) == text
