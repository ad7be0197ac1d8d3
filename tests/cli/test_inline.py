"""`pom-export inline`, as a person and as a program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import pom_export
from pom_export.cli.main import run
from pom_export.graph.exported_model import read_model

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(GOLDEN / "v2_no_heads", path, mask="causal")
    return path


def test_says_what_agrees(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inline", str(model), "-o", str(tmp_path / "in.onnx")]) == 0
    out = capsys.readouterr().out
    assert "inlined                      1 aggregation" in out
    assert "agrees with the original on  onnxruntime standard operators: 6 cases" in out
    assert not onnx.load(tmp_path / "in.onnx").functions


def test_json_names_the_cases(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "mine.npz", x=np.ones((1, 3, read_model(model).inputs[0].axes[2]), np.float32))
    arguments = ["inline", str(model), "-o", str(tmp_path / "in.onnx"), "--inputs", str(tmp_path / "mine.npz")]
    assert run([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["inlined"], result["checked"]) == (1, ["onnxruntime standard operators"])
    assert result["cases"][-1] == str(tmp_path / "mine.npz")


def test_the_export_can_inline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(GOLDEN / "v2_no_heads"), "-o", str(tmp_path / "in.onnx"), "--mask", "causal", "--inline"]
    assert run(arguments) == 0
    assert "aggregations            0: standard operators compute the 1 of the original" in capsys.readouterr().out
    assert run(["inspect", str(tmp_path / "in.onnx")]) == 0
    assert "0: standard operators compute the 1 of the original" in capsys.readouterr().out


def test_bad_input_is_one_line_and_no_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(GOLDEN / "v2_no_heads" / "checkpoint.pt")
    assert run(["inline", checkpoint, "-o", str(tmp_path / "in.onnx")]) == 2
    assert "is a zip archive, such as a checkpoint of PyTorch. Export it first" in capsys.readouterr().err
    assert run(["inline", str(model), "-o", str(tmp_path / "in.onnx"), "--inputs", str(tmp_path / "none.npz")]) == 2
    assert "none.npz" in capsys.readouterr().err
    assert run(["inline", str(model), "-o", str(model)]) == 2
    assert "m.onnx" in capsys.readouterr().err
    assert not (tmp_path / "in.onnx").exists()
