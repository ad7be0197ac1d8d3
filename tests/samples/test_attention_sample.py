"""The sample that goes from attention to PoM, run as a user would, with little training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

pytestmark = pytest.mark.slow

SAMPLE = Path(__file__).parents[2] / "samples" / "04_attention_to_pom.py"


def test_runs_from_attention_to_a_checked_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", SAMPLE, "--quick", "-o", tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "attention         accuracy",
        "PoM, tuned        accuracy",
        "2 replaced, 0 kept; parameters of the replaced layers: 33,280 before, 34,184 after",
        "digits_pom.onnx: 2 aggregations",
        "agrees with PyTorch on onnxruntime kernel, onnxruntime function",
        "450 held-out digits in ONNX Runtime",
    ):
        assert line in done.stdout
    model = onnx.load(tmp_path / "digits_pom.onnx")
    assert [node.domain for node in model.graph.node].count("pom") == 2
    assert (tmp_path / "attention_to_pom.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_that_it_names_works() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pom_export", "scan", "samples.04_attention_to_pom:build_model"],
        capture_output=True,
        text=True,
        check=False,
        cwd=SAMPLE.parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("automatic") == 2
    assert "samples.04_attention_to_pom:build_model" in SAMPLE.read_text()
