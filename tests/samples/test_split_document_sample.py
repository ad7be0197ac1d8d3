"""The sample that splits a document over machines, run on two processes and on two Ray workers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

SAMPLE = Path(__file__).parents[2] / "samples" / "05_split_document.py"
# Parts of unequal lengths, none a multiple of a call's length.
SMALL = ["--tokens", "20003", "--parts", "3"]


def check(done: subprocess.CompletedProcess[str], workers: str) -> None:
    assert done.returncode == 0, done.stderr
    assert f"20,003 tokens in 3 parts, on 2 {workers}\n" in done.stdout
    differences = [float(value) for value in re.findall(r" (\d\.\de[-+]\d\d)(?:,|\n)", done.stdout)]
    assert len(differences) == 3  # of states, answers and outputs
    assert max(differences) <= 1e-6
    assert done.stdout.endswith("parts and whole agree within 1e-06\n")
    # For each of 2 layers, 3 states in one direction and 2 back, each 2 x 64 float32 and an int64.
    assert "sent for the causal layers   5,200 bytes of states" in done.stdout
    before = 6667 + 13335
    assert f"attention would have sent    {before * 2 * 2 * 32 * 4:,} bytes of keys and values" in done.stdout


@pytest.fixture
def sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("split_document", SAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_parts_in_processes_give_what_one_process_gives() -> None:
    command = [sys.executable, "-W", "error", SAMPLE, *SMALL]
    check(subprocess.run(command, capture_output=True, text=True, check=False), "processes")


@pytest.mark.slow
def test_parts_on_ray_give_what_one_process_gives(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    # Ray's sockets need a short path, and Ray writes to the user's home.
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HOME": str(tmp_path), "RAY_TMPDIR": folder}
        command = [sys.executable, SAMPLE, *SMALL, "--ray"]
        check(subprocess.run(command, capture_output=True, text=True, check=False, env=environment), "Ray workers")


def test_without_ray_it_says_so_in_one_line() -> None:
    hidden = "import runpy, sys; sys.modules['ray'] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hidden, SAMPLE, "--ray"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "--ray needs Ray, which is not installed: pip install 'ray[data]>=2.40'\n"


@pytest.mark.parametrize("differences", [[1e-8, 2e-6], [1e-8, float("nan")]])
def test_numbers_that_differ_fail(
    sample: ModuleType, differences: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "compare", lambda *_: (differences, 0))
    result = CliRunner().invoke(sample.main, [])
    assert result.exit_code == 1
    assert "parts and whole DO NOT AGREE within 1e-06" in result.output
