"""`module:factory` in place of a checkpoint: its example inputs, and the errors about mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from pom_export.cli.main import run
from pom_export.cli.models import names_module

_MODELS = """
import torch
from torch import nn
from pom_export import PolynomialMixer

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mixer = PolynomialMixer(8, 2, 2)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens):
        return self.head(self.mixer(tokens))

def with_inputs():
    print("made")
    return Net(), (torch.randn(2, 5, 8),)

def by_name():
    return Net(), {"tokens": torch.randn(2, 5, 8)}

def ours():
    torch.manual_seed(0)
    return PolynomialMixer(8, 2, 2)

three = lambda: (Net(), 1, 2)
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo_of_mixers.py").write_text(_MODELS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "zoo_of_mixers", raising=False)


def test_what_names_a_module(tmp_path: Path) -> None:
    assert names_module("package.module:factory")
    assert names_module("module:holder.factory")
    assert not names_module("folder/model:factory")
    assert not names_module("model.pt")
    (tmp_path / "model:1").touch()
    assert not names_module("model:1")


def test_a_factory_brings_its_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "zoo_of_mixers:with_inputs", "-o", "m.onnx", "--json"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["inputs"] == ["tokens float32[batch, tokens, 8]"]
    assert result["aggregations"] == 1
    assert result["checked"] == ["onnxruntime kernel", "onnxruntime function"]
    assert "made" in printed.err
    assert run(["verify", "m.onnx", "--checkpoint", "zoo_of_mixers:by_name", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reference"] == "PyTorch in float64, Net"


def test_inputs_come_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("in.npz", tokens=np.random.default_rng(0).standard_normal((2, 5, 8), dtype=np.float32))
    assert run(["export", "zoo_of_mixers:Net", "-o", "m.onnx", "--example-inputs", "in.npz", "-q"]) == 0
    assert run(["verify", "m.onnx", "--checkpoint", "zoo_of_mixers:Net", "--inputs", "in.npz", "-q"]) == 0
    capsys.readouterr()
    np.savez("in.npz", token=np.zeros((2, 5, 8), np.float32))
    assert run(["export", "zoo_of_mixers:Net", "-o", "m.onnx", "--example-inputs", "in.npz"]) == 2
    assert "forward has no input 'token'; it has tokens" in capsys.readouterr().err


def test_our_own_models_need_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", "zoo_of_mixers:ours", "-o", "m.onnx", "--mask", "causal", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"] == ["x float32[batch, tokens, 8]"]
    assert run(["verify", "m.onnx", "--checkpoint", "zoo_of_mixers:ours", "-q"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["export", "zoo_of_mixers:Net", "-o", "m.onnx"],
            "(module, example_inputs), or give --example-inputs",
        ),
        (["verify", "ours.onnx", "--checkpoint", "zoo_of_mixers:Net"], "or give --inputs FILE.npz"),
        (["export", "model.pt", "-o", "m.onnx", "--example-inputs", "in.npz"], "--example-inputs is for a module"),
        (
            ["export", "zoo_of_mixers:three", "-o", "m.onnx"],
            "returned a tuple, not an nn.Module, alone or with",
        ),
        (["export", "zoo_of_mixers:with_input", "-o", "m.onnx"], "has no 'with_input'. Did you mean 'with_inputs'"),
        (["export", "zoo_of_mixer:Net", "-o", "m.onnx"], "no module zoo_of_mixer. Did you mean 'zoo_of_mixers'"),
        (["export", "zz_absent:Net", "-o", "m.onnx"], "no module zz_absent. It must be on Python's path"),
        (["export", "json.decoders:Net", "-o", "m.onnx"], "no module json.decoders. Did you mean 'json.decoder'"),
        (["export", "zoo_of_mixers:with_inputs", "-o", "zoo_of_mixers.py"], "zoo_of_mixers.py is the input itself"),
        (
            ["export", "zoo_of_mixers.py", "-o", "m.onnx"],
            "zoo_of_mixers.py is Python code, not a checkpoint. "
            "Name the function in it that returns the model, as in zoo_of_mixers:make_model",
        ),
        (["export", "zoo_of_mixers:with_inputs", "-o", "m.onnx", "--mask", "full"], "--mask is for our own models"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("pom-export: error: ")
    assert message in error
    assert Path("zoo_of_mixers.py").read_text() == _MODELS
    assert not Path("m.onnx").exists()
