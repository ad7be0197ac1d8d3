"""`pom-export run`: results on stdout, progress on stderr, one line for mistakes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.cli.main import run

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="none")
    random = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", **{f"x/{i}": random.standard_normal((2 + i % 2, 32)) for i in range(5)})
    return tmp_path / "m.onnx"


def test_prints_lines(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent
    assert run(["run", str(model), "--inputs", str(folder / "in.npz"), "-o", str(folder / "new" / "out.npz")]) == 0
    printed = capsys.readouterr()
    lines = [line.split(maxsplit=1) for line in printed.out.splitlines()]
    assert [name for name, _ in lines] == ["output", "sequences", "tokens", "seconds", "note"]
    assert lines[1][1] == "5 in 2 calls"
    assert lines[2][1] == "12"
    assert lines[4][1] == "2 sizes of tokens were run apart: padding would change the outputs"
    assert "loading" in printed.err
    assert (folder / "new" / "out.npz").is_file()


def test_prints_one_json_object(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model.parent
    command = ["run", str(model), "--inputs", str(folder / "in.npz"), "-o", str(folder / "out"), "--json"]
    assert run([*command, "--batch", "2"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["sequences"], result["tokens"], result["calls"], result["padded"]) == (5, 12, 3, [])
    assert printed.err == ""
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{i}.npz" for i in range(5)]


def test_names_the_sequence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(model.parent / "in.npy", np.zeros((4, 31), np.float32))
    assert run(["run", str(model), "--inputs", str(model.parent / "in.npy"), "-o", str(model.parent / "o.npy")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "pom-export: error: sequence 0: x has the shape [4, 31], not [tokens, 32]. Give it that shape"
    assert not (model.parent / "o.npy").exists()


def test_torch_is_not_imported(model: Path) -> None:
    code = (
        f"import sys, pom_export; pom_export.run_files({str(model)!r}, {str(model.parent / 'in.npz')!r}, "
        f"{str(model.parent / 'out.npz')!r}); print([m for m in ('torch', 'ray', 'polygraphy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
