"""How the benchmarks' results are printed, drawn and written."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.layer.estimates import Work
from benchmarks.layer.target import find_target
from benchmarks.layer.workload import LayerWorkload
from benchmarks.plots import SIZES_FILES, draw_sizes, require_matplotlib
from benchmarks.products import Product
from benchmarks.roofline import Bandwidth, Roofline
from benchmarks.serving.plots import SERVING_FILES, draw_serving
from benchmarks.stream.models import StreamShape
from benchmarks.stream.plots import STREAM_FILES, _short, draw_stream
from benchmarks.stream.prefill import Prefill
from benchmarks.stream.workload import StreamWorkload
from pom_export.bench.results import BenchResult
from pom_export.bench.table import as_page, as_text, latency_rows, memory_rows
from pom_export.bench.writing import results_folder, write_result
from pom_export.errors import MissingDependencyError

pytestmark = pytest.mark.slow

MIB = 1 << 20


def completed(result: BenchResult) -> BenchResult:
    """Add the facts that a stream's workload adds."""
    workload = StreamWorkload(StreamShape())
    workload.prefills = {1: Prefill(0.5, 100 * MIB), 1 << 20: Prefill(100, 101 * MIB)}
    workload.complete(result)
    return result


def test_the_table_of_a_layer_has_ratios_to_the_floor(layer_result: BenchResult) -> None:
    assert latency_rows(layer_result) == [
        ["tokens", "plain", "kernel", "matmul", "kernel/matmul", "plain/kernel"],
        ["256", "5.00", "2.00", "1.60", "1.25x", "2.50x"],
        ["1024", "-", "8.00", "8.00", "1.00x", "-"],
    ]
    assert memory_rows(layer_result)[1:] == [["256", "30.0", "3.0", "-", "7.0"], ["1024", "-", "-", "-", "-"]]


def test_the_tables_of_a_stream(stream_result: BenchResult) -> None:
    assert latency_rows(stream_result) == [
        ["tokens before", "kernel", "attention", "attention-shared", "attention/kernel", "attention-shared/kernel"],
        ["1", "2.00", "5.00", "1.00", "2.50x", "0.50x"],
        ["1048576", "2.02", "-", "-", "-", "-"],
    ]
    assert memory_rows(stream_result)[1:] == [
        ["1", "0.0", "6.0", "-", "0.062", "3.0", "-"],
        ["1048576", "0.0", "-", "-", "0.062", "-", "-"],
    ]
    (rows,) = completed(stream_result).tables.values()
    assert rows[1:] == [["1", "0.50", "2", "100.0"], ["1048576", "100.00", "10486", "101.0"]]


def test_a_stream_says_how_flat_it_is_and_what_was_not_run(stream_result: BenchResult) -> None:
    result = completed(stream_result)
    for text in (as_text(result), as_page(result)):
        assert "kernel: a token after 1048576 takes 1.01 times as long as one after 1" in text
        assert "attention: a token after" not in text
        assert "not run at batch 1, tokens before 1048576: attention: its cache is 16.0 GiB" in text
        assert "resident memory just after" in text.lower()


def test_the_json_of_a_stream_holds_all(stream_result: BenchResult) -> None:
    parsed = json.loads(json.dumps(completed(stream_result).to_dict()))
    assert parsed["last_over_first"] == {"kernel": 1.01, "attention": None, "attention-shared": None}
    first, last = parsed["points"]
    assert first["to_kernel"] == {"attention": 2.5, "attention-shared": 0.5}
    assert last["prefill"] == {"seconds": 100, "resident_bytes": 101 * MIB}


def test_a_layer_says_what_the_machine_can_do(layer_result: BenchResult) -> None:
    workload = LayerWorkload(find_target("layer"))
    workload.work = Work([Product(("batch", "tokens"), 8, 8, from_input=True, to_output=True)])
    workload.roofline = Roofline([Bandwidth(1 * MIB, 4e10, 3e10), Bandwidth(4 * MIB, 2e10, 1e10)], 1e11)
    workload.complete(layer_result)
    assert "100 GFLOP/s in matrix products; copies 30 GB/s at 1 MiB, 10 GB/s at 4 MiB" in as_text(layer_result)
    first = layer_result.points[0].facts
    assert first["to_matmul"] == {"plain": 3.125, "kernel": 1.25}
    assert first["memory_roofline_ms"] == pytest.approx(1e3 * 4 * (256 * 8 * 2 + 64) / 3e10)
    assert layer_result.to_dict()["roofline"]["flops_per_s"] == 1e11


def test_bandwidth_is_interpolated_between_sizes() -> None:
    roofline = Roofline([Bandwidth(1 << 20, 0, 4e10), Bandwidth(1 << 24, 0, 1e10)], 1e11)
    assert roofline.copy_at(1) == 4e10
    assert roofline.copy_at(1 << 22) == pytest.approx(2e10)
    assert roofline.copy_at(1 << 30) == 1e10
    assert roofline.memory_ms(1 << 30) == pytest.approx(107.4, rel=1e-3)


def test_a_layer_is_drawn(layer_result: BenchResult, tmp_path: Path) -> None:
    with results_folder(tmp_path / "new", more=SIZES_FILES) as folder:
        write_result(layer_result, folder)
        draw_sizes(layer_result, folder)
    files = ["latency.png", "latency.svg", "memory.png", "results.json", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    for name in ("latency.png", "memory.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    assert "memory roofline" in (tmp_path / "new" / "latency.svg").read_text()


def test_several_batches_are_panels_and_no_memory_is_no_plot(layer_result: BenchResult, tmp_path: Path) -> None:
    layer_result.points[1].batch = 4
    layer_result.points[0].memory = {}
    draw_sizes(layer_result, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["latency.png", "latency.svg"]
    assert "batch 4" in (tmp_path / "latency.svg").read_text()


def test_the_tables_of_a_server(serving_result: BenchResult) -> None:
    speeds, slowest = serving_result.tables.values()
    assert speeds == [
        ["streams", "pool", "sessions", "attention-8k"],
        ["1", "500", "500", "62"],
        ["8", "2000", "500", "-"],
    ]
    assert slowest[1:] == [["1", "3.00", "3.00", "24.0"], ["8", "6.00", "24.0", "-"]]
    assert "attention-8k: the same after 8,192 tokens" in as_text(serving_result)
    assert "would need 99.0 GiB" in as_page(serving_result)
    assert serving_result.to_dict()["points"][1]["tokens_per_second"] == {"pool": 2000, "sessions": 500}


@pytest.mark.parametrize("memory", [True, False])
def test_a_server_is_drawn(memory: bool, serving_result: BenchResult, tmp_path: Path) -> None:
    if not memory:
        serving_result = replace(serving_result, points=[replace(point, memory={}) for point in serving_result.points])
    draw_serving(serving_result, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(SERVING_FILES)
    assert ("MiB that all streams keep" in (tmp_path / "serving.svg").read_text()) is memory


@pytest.mark.parametrize("memory", [True, False])
def test_a_stream_is_drawn(memory: bool, stream_result: BenchResult, tmp_path: Path) -> None:
    if not memory:
        stream_result = replace(stream_result, points=[replace(point, memory={}) for point in stream_result.points])
    draw_stream(stream_result, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == list(STREAM_FILES)
    assert (tmp_path / "stream.png").read_bytes().startswith(b"\x89PNG")
    assert ("MiB that a sequence keeps" in (tmp_path / "stream.svg").read_text()) is memory


@pytest.mark.parametrize(("count", "text"), [(1, "1"), (128, "128"), (8192, "8k"), (1 << 20, "1M"), (1500, "1500")])
def test_ticks_are_short(count: int, text: str) -> None:
    assert _short(count) == text


def test_plots_without_matplotlib_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="plots need matplotlib") as caught:
        require_matplotlib()
    assert "--no-plots" in caught.value.hint
