"""Files beside an output: our own are kept consistent with it; other files and sources are never replaced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import pom_export
from pom_export.cli.main import run
from pom_export.graph import saving

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "m.onnx"


def export(checkpoint: Path, output: Path, *options: str) -> int:
    return run(["export", str(checkpoint), "-o", str(output), *options])


def test_an_export_removes_the_side_files_of_the_one_that_it_replaces(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(saving, "EXTERNAL_DATA_BYTES", 0)
        assert export(CHECKPOINT, output, "--samples", "1") == 0
        first = names(tmp_path)
        # Other weights have another name.
        assert export(CHECKPOINT, output, "--samples", "1", "--dtype", "float16") == 0
    second = names(tmp_path)
    assert [Path(name).suffix for name in second] == [".onnx", ".data", ".npz"]
    assert first[1] != second[1]
    assert export(CHECKPOINT, output) == 0
    assert names(tmp_path) == ["m.onnx"]


def test_an_export_leaves_files_that_are_not_surely_its_own(output: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx.data").write_text("of the user")
    assert export(CHECKPOINT, output, "--samples", "1") == 0
    (tmp_path / "m.parity.npz").rename(tmp_path / "kept.npz")
    assert export(CHECKPOINT, output, "--mask", "causal") == 0
    (tmp_path / "kept.npz").rename(tmp_path / "m.parity.npz")
    assert export(CHECKPOINT, output) == 0
    assert names(tmp_path) == ["m.onnx", "m.onnx.data", "m.parity.npz"]


def test_samples_replace_no_other_file(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "m.parity.npz"
    np.savez(place, results=np.ones(3))
    before = place.read_bytes()
    assert export(CHECKPOINT, output, "--samples", "1") == 2
    assert "is not parity data" in capsys.readouterr().err
    shutil.copy(CHECKPOINT, place)
    assert export(place, output, "--samples", "1") == 2
    assert "m.parity.npz is the input itself" in capsys.readouterr().err
    assert names(tmp_path) == ["m.parity.npz"]
    assert before != place.read_bytes() == CHECKPOINT.read_bytes()


def test_external_weights_do_not_replace_the_checkpoint(
    output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 0)
    assert export(CHECKPOINT, output) == 0
    (checkpoint,) = tmp_path.glob("m.onnx.*.data")
    shutil.copy(CHECKPOINT, checkpoint)
    assert export(checkpoint, output) == 2
    assert f"{checkpoint.name} is the input itself" in capsys.readouterr().err
    assert checkpoint.read_bytes() == CHECKPOINT.read_bytes()


def test_weights_that_a_killed_export_left_go_with_the_next(output: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx.0123456789abcdef.data").write_text("of an export that did not come to its end")
    others = ["m.onnx.0123456789abcdef.data.old", "m.onnx.notahashnotahash.data", "n.onnx.0123456789abcdef.data"]
    for name in others:
        (tmp_path / name).write_text("of the user")
    assert export(CHECKPOINT, output) == 0
    assert names(tmp_path) == sorted(["m.onnx", *others])


@pytest.mark.parametrize("suffix", [".json", ".txt", ".onnxtxt", ""])
def test_the_format_is_onnx_whatever_the_suffix(suffix: str, tmp_path: Path) -> None:
    output = tmp_path / f"m{suffix}"
    assert export(CHECKPOINT, output, "--samples", "1") == 0
    assert onnx.load(output, format="protobuf").graph.node
    assert run(["verify", str(output)]) == 0


def test_a_suffix_that_onnxruntime_takes_for_its_own_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(CHECKPOINT, tmp_path / "m.ort") == 2
    assert "takes m.ort for a file in its own format" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["m.onnx", "m.parity.npz", "c.pt", "in.npz", "none/none/r.html", "m.onnx/r.html"])
def test_a_report_has_its_place_before_anything_is_compared(
    place: str, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, inputs = tmp_path / "c.pt", tmp_path / "in.npz"
    shutil.copy(CHECKPOINT, checkpoint)
    np.savez(inputs, x=np.ones((1, 3, 32), np.float32))
    assert export(checkpoint, output, "--samples", "1") == 0
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    options = ["--checkpoint", str(checkpoint), "--inputs", str(inputs), "--report", str(tmp_path / place)]
    capsys.readouterr()
    assert run(["verify", str(output), *options]) == 2
    printed = capsys.readouterr()
    assert any(reason in printed.err for reason in ("is the input itself", "does not exist", "cannot write"))
    assert "cases" not in printed.err
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_verify_says_when_the_checkpoint_is_another_file(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, page = tmp_path / "c.pt", tmp_path / "r.html"
    torch.save(torch.load(CHECKPOINT, weights_only=True), same)
    pom_export.export(CHECKPOINT, output)
    command = ["verify", str(output), "--checkpoint"]
    assert run([*command, str(CHECKPOINT), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["notes"] == []
    assert run([*command, str(same), "--report", str(page)]) == 0
    assert "c.pt is not the file that was exported" in capsys.readouterr().out
    assert "is not the file that was exported" in page.read_text()
