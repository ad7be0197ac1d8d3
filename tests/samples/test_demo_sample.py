"""The demo, and the sample that continues a saved state with the demo's model, run as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pom_export

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[2] / "samples"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def run(sample: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SAMPLES / sample, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.usefixtures("tensorrt_rtx")
def test_the_demo_does_the_main_job(out: Path) -> None:
    done = run("01_demo.py", "-o", out)
    assert done.returncode == 0, done.stderr
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ pom-export ")] == [
        "export",
        "build",
        "verify",
        "export",
        "generate",
    ]
    assert done.stdout.count("agrees with PyTorch on  onnxruntime kernel, onnxruntime function") == 2
    assert "plugin layers             4 of 4 aggregations" in done.stdout
    assert "result                  passed" in done.stdout
    text, said, files, following = done.stdout[done.stdout.index("--seed 0") :].rsplit("\n\n", 3)
    assert len(text) > 200
    assert said.startswith("240 tokens, ")
    assert "a second; prompt 31, " in said
    for name in ("model.onnx", "report.html", "model.engine", "model.engine.json", "stateful.onnx"):
        assert f"{out / name}  {(out / name).stat().st_size:,} bytes" in files
    (generate,) = (line for line in following.splitlines() if line.startswith("  pom-export generate"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    typed = subprocess.run(generate, shell=True, env=environment, capture_output=True, text=True, check=False)
    assert typed.returncode == 0, typed.stderr
    assert len(typed.stdout.encode()) >= 200  # a token is a byte


def test_a_text_goes_on_from_a_file_as_if_never_stopped(out: Path) -> None:
    """With the demo's model, if the demo's test has run before."""
    done = run("06_resume.py", "-o", out, "--tokens", "61")
    assert done.returncode == 0, done.stderr
    assert "stopped after 30 tokens" in done.stdout
    assert done.stdout.endswith("the text and the state after it are the same to the last bit\n")
    lengths = [int(pom_export.State.load(out / f"{name}.npz").lengths[0]) for name in ("half", "resumed", "whole")]
    # The prompt's bytes, and all tokens but the last, which the model has not read yet.
    assert lengths == [31 + 29, 31 + 60, 31 + 60]


def test_a_command_that_fails_ends_the_sample(tmp_path: Path) -> None:
    (tmp_path / "stateful.onnx").write_bytes(b"no model")
    done = run("06_resume.py", "-o", tmp_path)
    assert done.returncode == 2
    assert "stateful.onnx" in done.stderr
    assert done.stderr.count("\n") <= 2
