"""How a result is printed and written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pom_export.bench.results import BenchResult, Summary, ratios, summarise
from pom_export.bench.table import as_page, as_text, latency_rows, mebibytes, memory_rows, milliseconds
from pom_export.bench.writing import results_folder, write_result
from pom_export.errors import InputError


@pytest.mark.parametrize(
    ("seconds", "lower", "median", "upper"),
    [([0.001], 1, 1, 1), ([0.002, 0.001], 1.25, 1.5, 1.75), ([0.001, 0.004, 0.002], 1.5, 2, 3)],
)
def test_quartiles_lie_between_values(seconds: list[float], lower: float, median: float, upper: float) -> None:
    summary = summarise(seconds)
    assert (summary.lower_ms, summary.median_ms, summary.upper_ms) == pytest.approx((lower, median, upper))


def test_a_summary_is_in_milliseconds_and_in_no_order() -> None:
    assert summarise([0.004, 0.001, 0.002, 0.003, 0.005]) == Summary(3.0, 2.0, 4.0, 1.0, pytest.approx(4.96), 5)


def test_ratios_are_those_of_the_medians() -> None:
    timings = {"matmul": summarise([0.002]), "kernel": summarise([0.003])}
    assert ratios(timings, "matmul") == {"kernel": pytest.approx(1.5)}
    assert ratios(timings, "plain") == {}


def test_the_table_has_milliseconds_and_ratios(result: BenchResult) -> None:
    assert latency_rows(result) == [
        ["tokens", "function", "kernel", "function/kernel"],
        ["256", "5.00", "2.00", "2.50x"],
        ["1024", "-", "8.00", "-"],
    ]
    assert memory_rows(result) == [
        ["tokens", "function grows", "kernel grows", "kernel holds"],
        ["256", "30.0", "3.0", "7.0"],
        ["1024", "-", "-", "-"],
    ]


def test_the_batch_is_a_column_where_there_are_several(result: BenchResult) -> None:
    result.points[1].batch = 4
    assert [row[0] for row in latency_rows(result)] == ["batch", "1", "4"]


@pytest.mark.parametrize(("value", "text"), [(0.01234, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_milliseconds_have_three_digits_or_more(value: float, text: str) -> None:
    assert milliseconds(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0.0"), (1 << 16, "0.062"), (3 << 20, "3.0"), (1 << 30, "1024.0")]
)
def test_small_sizes_have_more_digits(count: int | None, text: str) -> None:
    assert mebibytes(count) == text


def test_text_and_page_say_what_was_not_run(result: BenchResult) -> None:
    result.notes.append("a note of the workload's")
    result.tables["a table of the workload's"] = [["name"], ["cell"]]
    for text in (as_text(result), as_page(result)):
        assert "not run: tensorrt: it needs a GPU" in text
        assert "not run at batch 1, tokens 1024: function: would need 99.0 GiB" in text
        assert "Some CPU, 2 threads" in text
        assert "a note of the workload's" in text
        assert "cell" in text
    assert "4.50 to 6.00, 5" in as_page(result)


def test_a_kernel_is_named_where_there_is_one(result: BenchResult) -> None:
    assert "ONNX Runtime 1, kernel avx2; 2026-01-02" in as_text(result)
    without = replace(result, machine={**result.machine, "pom_cpu_kernel": None})
    assert "ONNX Runtime 1; 2026-01-02" in as_text(without)


def test_json_holds_timings_ratios_memory_and_the_workloads_facts(result: BenchResult) -> None:
    result.facts["more"] = 1
    result.points[0].facts["still more"] = 2
    parsed = json.loads(json.dumps(result.to_dict()))
    first, second = parsed["points"]
    assert first["timings"]["kernel"] == {
        "median_ms": 2, "lower_ms": 1.8, "upper_ms": 2.4, "min_ms": 1.6, "p99_ms": 3, "runs": 5,
    }  # fmt: skip
    assert first["to_kernel"] == {"function": 2.5}
    assert first["memory"]["function"] == {"growth_bytes": 30 << 20, "tensor_bytes": 7 << 20}
    assert second["skipped"] == {"function": "would need 99.0 GiB"}
    assert (parsed["more"], first["still more"]) == (1, 2)


def test_the_folder_holds_numbers_and_what_else_is_written(result: BenchResult, tmp_path: Path) -> None:
    with results_folder(tmp_path / "new", more=["plot.png"]) as folder:
        write_result(result, folder)
        (folder / "plot.png").write_bytes(b"a plot")
    files = ["plot.png", "results.json", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == result.to_dict()


def test_what_an_earlier_run_left_is_removed(result: BenchResult, tmp_path: Path) -> None:
    for name in ("plot.png", "other"):
        (tmp_path / name).write_text("of an earlier run")
    with results_folder(tmp_path, more=["plot.png"]) as folder:
        write_result(replace(result, points=result.points[:1]), folder)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "results.json", "table.md"]


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), results_folder(tmp_path / "new"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_places_that_take_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, message in ((tmp_path / "file", "is a file"), (tmp_path / "no" / "no", "mkdir"), ("/proc/no", "cannot")):
        with pytest.raises(InputError, match=message), results_folder(place):
            pass
