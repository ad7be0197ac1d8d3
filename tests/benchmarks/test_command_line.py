"""The command line of the benchmarks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.image.workload import ImageWorkload
from benchmarks.layer.workload import LayerWorkload
from benchmarks.serving.workload import ServingWorkload
from benchmarks.stream.workload import StreamWorkload

pytestmark = pytest.mark.slow

SMALL = ["--dim", "16", "--degree", "2", "--expand", "1", "--threads", "1", "--warmup", "0"]


def test_a_layer_fills_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--repeats", "1", "--tokens", "8", "--backends", "kernel,matmul", "-o", str(tmp_path / "new")]
    assert main(["layer", *options, "--mask", "causal"]) == 0
    printed = capsys.readouterr()
    assert "tokens  kernel  matmul  kernel/matmul" in printed.out
    assert "GFLOP/s in matrix products" in printed.out
    assert "tokens 8: timing kernel, matmul" in printed.err
    files = ["latency.png", "latency.svg", "memory.png", "results.json", "table.md"]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == files
    (point,) = json.loads((tmp_path / "new" / "results.json").read_text())["points"]
    assert point["memory"].keys() == {"kernel", "matmul"}
    assert point["memory_roofline_ms"] > 0


def test_a_stream_without_a_folder_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SMALL, "--heads", "2", "--tokens", "1,20", "--backends", "kernel", "--no-memory", "--json"]
    assert main(["stream", *options]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [point["tokens"] for point in result["points"]] == [1, 20]
    assert result["options"]["repeats"] == 200
    assert {point["timings"]["kernel"]["runs"] for point in result["points"]} == {200}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layer", "--backends", "attention-shared"], "Did you mean 'attention'?"),
        (["stream", "--backends", "kernel,torch"], "'torch' is not one of function, kernel, attention"),
        (["layer", "--mask", "diagonal"], "'diagonal' is not one of none, causal"),
        (["stream", "--batch", "2"], "No such option"),
        (["serving", "--streams", "0"], "0"),
        (["serving", "--tokens", "8"], "No such option"),
        (["image", "--tokens", "250", "--dim", "64"], "250 tokens are not a square"),
        (["project", "layer-odd"], "unknown run 'layer-odd'"),
        (["layer", "--budget", "-1"], "-1.0 is not in the range x>=0"),
        (["layer", "--budget", "nan"], "the time budget must be a number of seconds, 0 or more, got nan"),
        (["layer", "--seed", "-1"], "-1 is not in the range x>=0"),
        (["layer", "--what"], "No such option"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "workload"),
    [("layer", LayerWorkload), ("stream", StreamWorkload), ("serving", ServingWorkload), ("image", ImageWorkload)],
)
def test_help_names_the_backends(
    command: str, workload: type[LayerWorkload], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    printed = "".join(capsys.readouterr().out.split())  # a name may be cut at its hyphen
    assert all(name in printed for name in workload.known)
