"""`pom-export package`, as a person and as a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pom_export.cli.main import run
from tests.streaming_graphs import running_sum_model


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    model = running_sum_model(tmp_path / "sums.onnx")
    return ["package", str(model), "-o", str(tmp_path / "a new" / "served"), "--for", "triton"]


def test_says_how_to_serve_it(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 0
    folder = tmp_path / "a new" / "served"
    assert f"serve it  cd '{folder}' && tritonserver --model-repository=models" in capsys.readouterr().out
    assert run([*arguments, "--force", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["target"], result["command"]) == ("triton", "tritonserver --model-repository=models")
    assert "manifest.json" in result["files"]


def test_bad_input_is_one_line_and_no_folder(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, message in (
        (["--for", "tritn"], "'tritn' is not one of triton"),
        (["--bench", "none.json"], "--bench does not apply"),
        (["--name", "a/b"], "--name is 'a/b'"),
    ):
        assert run([*arguments, *more]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["sums.onnx"]
    assert run(arguments) == 0
    assert run(arguments) == 2
    assert "--force" in capsys.readouterr().err
