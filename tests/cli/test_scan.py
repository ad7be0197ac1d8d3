"""`pom-export scan`: a table for people, one JSON object for programs, one line for mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pom_export.cli.main import run

_MODELS = """
import sys
from types import SimpleNamespace
from torch import nn
import torch

print("made on import")

class Functional(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x)

def make():
    print("made")
    return nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

def fail():
    raise RuntimeError("no weights\\nat all")

def leave():
    sys.exit("bye")

ready = make()
nested = SimpleNamespace(linear=nn.Linear(1, 1))
code = Functional
codes = lambda: nn.ModuleList([Functional(), Functional(), Functional()])
number = 3
text = lambda: "text"
"""


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo_of_models.py").write_text(_MODELS)
    (tmp_path / "lacks_a_package.py").write_text("import not_a_package_at_all")
    (tmp_path / "wrong.py").write_text("def")
    (tmp_path / "model.pt").write_bytes(b"")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("zoo_of_models", "lacks_a_package", "wrong"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_prints_tables(capsys: pytest.CaptureFixture[str]) -> None:
    path = list(sys.path)
    assert run(["scan", "zoo_of_models:make", "--tokens", "64,1000000"]) == 0
    printed = capsys.readouterr()
    rows = [line.split() for line in printed.out.splitlines()]
    assert rows[0] == ["attention", "class", "in", "dim", "heads", "parameters", "as", "PoM", "swap"]
    assert rows[1] == [
        "encoder.layers.0.self_attn", "MultiheadAttention", "TransformerEncoderLayer", "8", "2", "288", "330",
        "automatic",
    ]  # fmt: skip
    assert rows[-1][0] == "1,000,000"
    assert rows[-1][-4:] == ["183.1", "MiB", "408", "B"]
    assert len(rows) == 8
    assert printed.err.endswith("made on import\nmade\nmade\n")
    assert sys.path == path


@pytest.mark.parametrize(("reference", "count"), [("make", 3), ("ready", 3), ("nested.linear", 0), ("code", 1)])
def test_prints_one_json_object(reference: str, count: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", f"zoo_of_models:{reference}", "--json", "--tokens", "32", "--degree", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["attention"]) == count
    assert (result["tokens"], result["degree"], result["expand"], result["groups"]) == ([32], 2, 2, 1)
    if count == 3:
        first = result["attention"][0]
        assert first["costs"][0]["attention_macs"] == 32 * 4 * 8 * 8 + 2 * 32 * 32 * 8
        assert first["costs"][0]["state_bytes"] == 2 * 16 * 4 + 8
        assert first["layer"] == "TransformerEncoderLayer"


def test_no_attention_is_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "zoo_of_models:nested.linear"]) == 0
    assert capsys.readouterr().out == "no attention found\n"


def test_says_what_to_do_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "zoo_of_models:code"]) == 0
    out = capsys.readouterr().out
    assert "by hand" in out
    assert "the model: its forward calls scaled_dot_product_attention" in out
    assert "MACs" not in out
    assert run(["scan", "zoo_of_models:codes"]) == 0
    assert capsys.readouterr().out.count("0 and 2 more: its forward calls") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo_of_models"], "'zoo_of_models' is not MODULE:FACTORY"),
        (["zoo_of_models:"], "'zoo_of_models:' is not MODULE:FACTORY"),
        (["model.pt"], "model.pt is a file: loading a saved module executes code"),
        (["not_a_package_at_all:make"], "no module not_a_package_at_all"),
        (["zoo_of_models.py:make"], "Write zoo_of_models, not zoo_of_models.py"),
        (["lacks_a_package:make"], "importing lacks_a_package raised ModuleNotFoundError: No module named 'not_a_p"),
        (["wrong:make"], "importing wrong raised SyntaxError"),
        (["zoo_of_models:missing"], "zoo_of_models:missing: zoo_of_models has no 'missing'"),
        (["zoo_of_models:nested.missing"], "has no 'missing'"),
        (["zoo_of_models:number"], "zoo_of_models:number is an int, not an nn.Module or a callable"),
        (["zoo_of_models:text"], "zoo_of_models:text() returned a str, not an nn.Module"),
        (["zoo_of_models:fail"], "zoo_of_models:fail() raised RuntimeError: no weights."),
        (["zoo_of_models:leave"], "zoo_of_models:leave() raised SystemExit: bye"),
        (["zoo_of_models:make", "--groups", "3"], "encoder.layers.0.self_attn: --groups must divide dim, got 3 and 8"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", *arguments, "--json"]) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("pom-export: error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in printed.err
    assert set(json.loads(printed.out)) == {"error", "hint"}


def test_a_saved_module_is_read_where_the_user_trusts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(nn.TransformerEncoderLayer(8, 2), tmp_path / "layer.pt")
    assert run(["scan", "layer.pt"]) == 2
    assert "--trust" in capsys.readouterr().err
    assert run(["scan", "layer.pt", "--trust"]) == 0
    assert "self_attn" in capsys.readouterr().out
    torch.save({"weight": torch.ones(1)}, tmp_path / "state.pt")
    assert run(["scan", "state.pt", "--trust"]) == 2
    assert "holds a dict" in capsys.readouterr().err
    (tmp_path / "text").write_text("text")
    assert run(["scan", "text", "--trust"]) == 2
    assert "reading text raised" in capsys.readouterr().err
