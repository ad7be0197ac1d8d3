"""`--weights`: which of several sets of weights in a checkpoint is exported, verified and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.mixer import PolynomialMixer

RAW, AVERAGE = "model (state_dict)", "ema (ema_state_dict)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of raw and averaged weights, and the export of the average."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    raw = PolynomialMixer(8, 2, 1).state_dict()
    torch.save({"state_dict": raw, "ema_state_dict": averaged(raw)}, folder / "both.pt")
    torch.save(raw, folder / "raw.pt")
    torch.save(averaged(raw), folder / "average.pt")
    assert run(["export", str(folder / "both.pt"), "-o", str(folder / "m.onnx"), "--weights", "ema", "--json"]) == 0
    return folder


def averaged(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * 0.5 for name, tensor in raw.items()}


def result_of(arguments: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> Any:
    capsys.readouterr()
    assert run([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_inspect_names_every_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = result_of(["inspect", str(folder / "both.pt")], capsys)
    assert (result["weights"], result["other_weights"]) == ("model", [AVERAGE])
    result = result_of(["inspect", str(folder / "both.pt"), "--weights", "ema_state_dict"], capsys)
    assert (result["weights"], result["other_weights"]) == ("ema", [RAW])
    assert run(["inspect", str(folder / "both.pt")]) == 0
    shown = capsys.readouterr().out
    assert "other weights" in shown
    assert f"note           the weights are {RAW}; the file also holds {AVERAGE}" in shown
    assert run(["inspect", str(folder / "both.pt"), "--weights", "emma"]) == 2
    assert "Did you mean 'ema'?" in capsys.readouterr().err
    assert run(["inspect", str(folder / "both.pt"), "--weights", "other"]) == 2
    assert f"it has {RAW}, {AVERAGE}" in capsys.readouterr().err


def test_export_writes_the_set_and_says_which(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8)).astype(np.float32)
    (y,) = pom_export.inference_session(folder / "m.onnx").run(None, {"x": x})
    expected = pom_export.load_checkpoint(folder / "average.pt")(torch.from_numpy(x)).numpy()
    assert np.allclose(y, expected, atol=1e-6)
    result = pom_export.export(folder / "both.pt", folder / "raw.onnx")
    assert (result.weights, result.other_weights) == ("model", [AVERAGE])
    assert result.notes[0].startswith(f"the weights are {RAW}; the file also holds {AVERAGE}")
    assert run(["export", str(folder / "both.pt"), "-o", str(folder / "raw.onnx")]) == 0
    streams = capsys.readouterr()
    assert all(f"the weights are {RAW}" in text for text in (streams.out, streams.err))


def test_verify_takes_the_set_that_was_exported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify = ["verify", str(folder / "m.onnx"), "--checkpoint"]
    result = result_of([*verify, str(folder / "both.pt")], capsys)
    assert result["passed"]
    assert any(note.startswith(f"the weights are {AVERAGE}, an average") for note in result["notes"])
    assert not result_of([*verify, str(folder / "both.pt"), "--weights", "model"], capsys, code=1)["passed"]
    result = result_of([*verify, str(folder / "average.pt")], capsys)
    assert result["passed"]
    assert "exported from weights called ema" in result["notes"][0]
    assert run(["verify", str(folder / "m.onnx"), "--weights", "ema"]) == 2
    assert "Give --checkpoint" in capsys.readouterr().err


def test_a_module_has_one_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`weights` is for checkpoints"):
        pom_export.export(PolynomialMixer(8, 2, 1), tmp_path / "m.onnx", weights="ema")


def test_an_export_says_that_it_changes_the_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixer = PolynomialMixer(8, 2, 1)
    assert pom_export.export(mixer, tmp_path / "m.onnx").notes == []
    notes = pom_export.export(mixer.bfloat16(), tmp_path / "m.onnx").notes
    assert notes == [
        "the file is written in float32; of the weights' tensors 4 of bfloat16 were converted: "
        "`dtype='bfloat16'` keeps that type"
    ]
    assert not any(
        "converted" in note for note in pom_export.export(mixer, tmp_path / "m.onnx", dtype="bfloat16").notes
    )
