"""What is printed, drawn and written of a result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pom_export.bench.results import BenchResult
from pom_export.bench.roofline import Bandwidth, Roofline
from pom_export.bench.table import as_page, as_text, latency_rows, memory_rows, milliseconds
from pom_export.bench.writing import results_folder
from pom_export.errors import InputError, MissingDependencyError

FILES = ["latency.png", "latency.svg", "memory.png", "results.json", "table.md"]


def test_the_table_has_milliseconds_and_ratios(result: BenchResult) -> None:
    assert latency_rows(result) == [
        ["tokens", "plain", "kernel", "matmul", "kernel/matmul", "plain/kernel"],
        ["256", "5.00", "2.00", "1.60", "1.25x", "2.50x"],
        ["1024", "-", "8.00", "8.00", "1.00x", "-"],
    ]
    assert memory_rows(result)[1:] == [["256", "30.0", "3.0", "-", "7.0"], ["1024", "-", "-", "-", "-"]]


def test_the_batch_is_a_column_where_there_are_several(result: BenchResult) -> None:
    result.points[1].batch = 4
    assert [row[0] for row in latency_rows(result)] == ["batch", "1", "4"]


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_milliseconds_have_three_digits_or_more(value: float, text: str) -> None:
    assert milliseconds(value) == text


def test_text_and_page_say_what_was_not_run(result: BenchResult) -> None:
    for text in (as_text(result), as_page(result)):
        assert "not run: tensorrt: it needs a GPU" in text
        assert "not run at batch 1, tokens 1024: plain: would need 99.0 GiB" in text
        assert "Some CPU, 2 threads" in text
    assert "4.50 to 6.00, 5" in as_page(result)


def test_json_holds_timings_ratios_and_memory(result: BenchResult) -> None:
    parsed = json.loads(json.dumps(result.to_dict()))
    first, second = parsed["points"]
    assert first["timings"]["kernel"] == {
        "median_ms": 2, "lower_ms": 1.8, "upper_ms": 2.4, "min_ms": 1.6, "runs": 5,
    }  # fmt: skip
    assert first["to_matmul"] == {"plain": 3.125, "kernel": 1.25}
    assert first["to_kernel"] == {"plain": 2.5, "matmul": 0.8}
    assert first["memory"]["plain"] == {"growth_bytes": 30 << 20, "tensor_bytes": 7 << 20}
    assert second["skipped"] == {"plain": "would need 99.0 GiB"}
    assert Roofline.from_dict(parsed["roofline"]) == result.roofline


def test_bandwidth_is_interpolated_between_sizes() -> None:
    roofline = Roofline([Bandwidth(1 << 20, 0, 4e10), Bandwidth(1 << 24, 0, 1e10)], 1e11)
    assert roofline.copy_at(1) == 4e10
    assert roofline.copy_at(1 << 22) == pytest.approx(2e10)
    assert roofline.copy_at(1 << 30) == 1e10
    assert roofline.memory_ms(1 << 30) == pytest.approx(107.4, rel=1e-3)


def test_the_folder_holds_images_and_numbers(result: BenchResult, tmp_path: Path) -> None:
    with results_folder(tmp_path / "new") as writer:
        writer.write(result)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == FILES
    for name in ("latency.png", "memory.png"):
        assert (tmp_path / "new" / name).read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "new" / "latency.svg").read_text()
    assert "<svg" in svg
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == result.to_dict()


def test_several_batches_are_panels_and_no_memory_is_no_plot(result: BenchResult, tmp_path: Path) -> None:
    (tmp_path / "memory.png").write_text("of an earlier run")
    result.points[1].batch = 4
    result.points[0].memory = {}
    with results_folder(tmp_path) as writer:
        writer.write(result)
    assert sorted(file.name for file in tmp_path.iterdir()) == [name for name in FILES if name != "memory.png"]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), results_folder(tmp_path / "new"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, message in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "no", "mkdir"), ("/proc/no", "cannot")):
        with pytest.raises(InputError, match=message), results_folder(place):
            pass


def test_plots_without_matplotlib_are_one_clear_line(
    result: BenchResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match="--no-plots"), results_folder(tmp_path / "new"):
        pass
    with results_folder(tmp_path / "new", plots=False) as writer:
        writer.write(result)
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["results.json", "table.md"]
