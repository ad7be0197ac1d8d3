"""Batches spread by Ray Data."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.errors import InputError, MissingDependencyError

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    model, inputs = tmp_path / "m.onnx", tmp_path / "in.npz"
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", model, mask="causal")
    random = np.random.default_rng(0)
    np.savez(inputs, **{f"x/{i}": random.standard_normal((1 + i % 7, 32)).astype(np.float32) for i in range(40)})
    return model, inputs


def command(model: Path, inputs: Path, output: Path) -> list[str]:
    options = ["--inputs", str(inputs), "-o", str(output), "--ray", "--batch", "5"]
    return [sys.executable, "-m", "pom_export", "run", str(model), *options]


@pytest.mark.slow
def test_rays_workers_give_what_one_process_gives(files: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    model, inputs = files
    pom_export.run_files(model, inputs, tmp_path / "here.npz", batch=5)
    with np.load(inputs) as arrays:
        np.savez(tmp_path / "bad.npz", **{**arrays, "x/7": np.full((3, 32), 1e300)})
    # Ray's sockets need a short path, and Ray writes to the user's home.
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"HOME": str(tmp_path), "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        options = {"capture_output": True, "text": True, "check": False, "env": environment}
        done = subprocess.run(command(model, inputs, tmp_path / "spread.npz"), **options)
        failed = subprocess.run(command(model, tmp_path / "bad.npz", tmp_path / "bad_out.npz"), **options)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "here.npz") as here, np.load(tmp_path / "spread.npz") as spread:
        assert spread.files == here.files
        for name in here.files:
            np.testing.assert_allclose(spread[name], here[name], rtol=1e-5, atol=1e-6)
    assert failed.returncode == 2
    assert failed.stderr.splitlines()[-1].startswith("pom-export: error: sequence 7: x holds a number that float32")
    assert not (tmp_path / "bad_out.npz").exists()


def test_without_ray_it_says_how_to_install_it(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"Ray Data is not installed .* pip install 'ray\[data\]>=2.40'"):
        pom_export.run_files(*files, files[0].parent / "out.npz", ray=True)
    assert not (files[0].parent / "out.npz").exists()


def test_a_session_cannot_be_spread(files: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="Give the model's path"):
        pom_export.run_files(pom_export.inference_session(files[0]), files[1], files[0].parent / "o.npz", ray=True)
