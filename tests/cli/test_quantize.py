"""`pom-export quantize`, as a person and as a program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.cli.main import run
from pom_export.cli.parameters import parse_share
from pom_export.errors import InputError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(GOLDEN / "v2_base", path)
    return path


def test_says_what_it_cost(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(model), "-o", str(tmp_path / "q.onnx"), "--weights", "int8"]) == 0
    out = capsys.readouterr().out
    for words in ("of the original's)", "3: 3 in int8", "error of its weights", "largest error", "random inputs"):
        assert words in out
    assert "agrees with its rounded weights on" in out


def test_json(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    width = pom_export.inference_session(model).get_inputs()[0].shape[2]
    x = np.random.default_rng(0).standard_normal((8, 5, width)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    arguments = ["quantize", str(model), "-o", str(tmp_path / "q.onnx"), "--calibrate", str(tmp_path / "x.npz")]
    assert run([*arguments, "--max-error", "5%", "--for", "prefill", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["quality"]["error"] <= 0.05
    assert result["quality"]["measure"] == ""
    assert result["measured_on"] == str(tmp_path / "x.npz")
    assert result["notes"] == []


def test_a_budget_that_nothing_meets(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["quantize", str(model), "-o", str(tmp_path / "q.onnx"), "--max-error", "1e-9"]) == 1
    err = capsys.readouterr().err
    assert "no file is within the budget: the closest has errors of up to" in err
    assert "--max-error" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "int2"], "int2"),
        (["--max-loss", "none"], "'none' is no share above 0"),
        (["--calibrate", "missing.txt"], "missing.txt"),
        (["--tokenizer", "missing.json"], "missing.json"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["quantize", str(model), "-o", str(tmp_path / "q.onnx"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_export_can_be_quantized_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "q.onnx"
    arguments = ["export", str(GOLDEN / "v2_base"), "-o", str(out), "--samples", "1", "--quantize", "int8", "--json"]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == result["quantized"]["model"] == str(out)
    assert result["bytes"] == out.stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.onnx", "q.parity.npz"]
    assert pom_export.verify(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--calibrate", "x.npz"], "--calibrate is for a file that is quantized"),
        (["--quantize", "int8", "--dtype", "fp16"], "--quantize rounds float32 weights, and --dtype is float16"),
        (["--quantize", "int8", "--calibrate", "missing.npz"], "missing.npz"),
    ],
)
def test_an_export_that_cannot_be_quantized(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", str(GOLDEN / "v2_base"), "-o", str(tmp_path / "q.onnx"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.02", 0.02), ("100 %", 1.0), ("1e-3", 0.001)])
def test_shares(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "-1%", "0", "nan", "inf%", "a"])
def test_no_shares(text: str) -> None:
    with pytest.raises(InputError, match="is no share above 0"):
        parse_share(text)
