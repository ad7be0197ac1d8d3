"""`pom-export inspect`, as a person and as a program."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pom_export.cli.main import run

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def test_says_what_a_checkpoint_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(GOLDEN / "gpt_hybrid")]) == 0
    out = capsys.readouterr().out
    assert "nanogpt-pom (pom-v1-grouped): vocabulary 97, 6 layers (2 layers of full self-attention, 4 heads)" in out
    assert "33 tensors of float32" in out


def test_json_holds_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(GOLDEN / "rope2d" / "checkpoint.pt"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["architecture"], result["family"]) == ("mixer", "pom-v2")
    assert result["config"]["rotary"] == {"max_seq_len": 0, "max_h": 8, "max_w": 8}
    assert result["dtypes"] == {"float32": 8}
    assert len(result["sha256"]) == 64


def test_what_is_missing_is_said_with_the_option_that_gives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(GOLDEN / "v1_degree3" / "checkpoint.pt", tmp_path / "m.pt")
    assert run(["inspect", str(tmp_path / "m.pt")]) == 2
    assert "--degree 1, 2, 3 or 6" in capsys.readouterr().err
    assert run(["inspect", str(tmp_path / "m.pt"), "--degree", "3"]) == 0
    assert "degree 3, expand 2" in capsys.readouterr().out
