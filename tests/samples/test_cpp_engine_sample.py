"""The C++ sample that runs an engine, as far as a machine without a GPU allows."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

import pom_export
from pom_export.engine.backend import gpu_present
from tests.cpp_samples import build_sample
from tests.lean_runtimes import TENSORRT_10, lean_library

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "golden" / "v2_heads" / "checkpoint.pt"


def pip_tensorrt() -> list[str]:
    """Return the option that names pip's TensorRT, if it is installed: find_library() finds no libnvinfer.so.10."""
    spec = importlib.util.find_spec("tensorrt_libs")
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = sorted(file for folder in folders for file in Path(folder).glob("libnvinfer.so*"))
    return [f"-DTENSORRT_LIBRARY={file}" for file in found[:1]]


def test_pips_tensorrt_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = tmp_path / "tensorrt_libs"
    libraries.mkdir()
    for name in ("__init__.py", "libnvinfer.so.10", "libnvinfer_plugin.so.10"):
        (libraries / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert pip_tensorrt() == [f"-DTENSORRT_LIBRARY={libraries / 'libnvinfer.so.10'}"]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The library of TensorRT 10, which is enough to link and to start.
    library = f"-DTENSORRT_LIBRARY={lean_library(TENSORRT_10)}"
    return build_sample(tmp_path_factory.mktemp("cpp"), "run_engine", library)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "usage: run_engine ENGINE"),
        (["none.engine"], "cannot read none.engine"),
        (["none.engine", "x"], "x is not NAME=SHAPE"),
        (["none.engine", "=1"], "=1 is not NAME=SHAPE"),
        (["none.engine", "x=1xa"], "x=1xa has no shape of the form 1x16x64"),
        (["none.engine", "x="], "x= has no shape"),
        (["none.engine", "x=" + "x".join("1" * 9)], "has no shape"),
        (["none.engine", "x=1x4", "mask=1", "x=1x8"], "x is given twice"),
        (["/"], "cannot read /"),
    ],
)
def test_bad_input_is_named_in_one_line(program: Path, arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.skipif(gpu_present(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(program: Path, tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"engine")
    done = subprocess.run([program, "m.engine"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("CUDA: ")


@pytest.mark.gpu
@pytest.mark.tensorrt
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
def test_an_engine_runs_from_cpp(tmp_path: Path) -> None:
    """It computes the same numbers as ONNX Runtime."""
    import numpy as np

    pytest.importorskip("tensorrt")
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt")
    x = np.random.default_rng(0).normal(size=(1, 16, 32)).astype(np.float32)
    x.tofile(tmp_path / "x.bin")
    (expected,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x})

    program = build_sample(tmp_path / "build", "run_engine", *pip_tensorrt())
    refused = subprocess.run([program, "m.engine", "z=1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr) == (2, "the engine has no input z, but x\n")
    subprocess.run([program, "m.engine", "x=1x16x32:x.bin"], cwd=tmp_path, check=True)

    y = np.fromfile(tmp_path / "y.bin", dtype=np.float32).reshape(expected.shape)
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
