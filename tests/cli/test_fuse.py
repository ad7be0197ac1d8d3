"""`pom-export fuse`, as a person and as a program."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from pom_export.cli.main import run
from tests.plain_graphs import ACTIVATIONS, plain_graph


def test_it_fuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(plain_graph(), tmp_path / "plain.onnx")

    assert run(["fuse", str(tmp_path / "plain.onnx"), "-o", str(tmp_path / "out.onnx"), "--json"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert (found["fused"], found["left"], found["model"]) == (1, [], str(tmp_path / "out.onnx"))
    assert (tmp_path / "out.onnx").exists()


def test_nothing_to_fuse_is_a_failed_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(plain_graph(ACTIVATIONS["leaky_relu"].replace("high", "five")), tmp_path / "plain.onnx")

    assert run(["fuse", str(tmp_path / "plain.onnx"), "-o", str(tmp_path / "out.onnx")]) == 1

    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["left as it is"].strip() == "Clip_2: its activation clamps at 5, not at 6"
    assert lines["result"].strip() == "nothing was fused, and no file was written"
    assert not (tmp_path / "out.onnx").exists()


def test_bad_input_is_one_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.onnx").write_text("hello")

    assert run(["fuse", str(tmp_path / "text.onnx"), "-o", str(tmp_path / "out.onnx")]) == 2

    assert "text.onnx is not a complete ONNX model" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()
