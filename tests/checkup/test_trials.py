"""What is broken for real is found, and named with a remedy."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export.checkup import child, probes, programs
from pom_export.checkup.child import try_in_child
from pom_export.checkup.findings import BROKEN, NOT_INSTALLED, OK, BrokenError, Finding, NotInstalledError
from pom_export.engine.backend import gpu_present
from pom_export.engine.manifest import sealed
from pom_export.errors import MissingDependencyError
from pom_export.files import sha256_of
from pom_export.runtime.library import custom_ops_library, rtx_soname_library

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


def tried(probe: str, *arguments: Any) -> Finding:
    return try_in_child("it", probe, arguments, remedy="mend it")


def stub(folder: Path, name: str, code: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)


def listed(folder: Path, name: str, version: str) -> None:
    place = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that comes before all others on the path."""
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_op_computes_right() -> None:
    found = tried("op")
    assert (found.state, found.remedy) == (OK, "")
    assert str(custom_ops_library()) in found.detail


def test_a_damaged_op_library_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tmp_path / "cut.so"
    cut.write_bytes(custom_ops_library().read_bytes()[:5000])
    for library in (cut, tmp_path / "none.so", rtx_soname_library()):
        monkeypatch.setenv("POM_CUSTOM_OPS_LIBRARY", str(library))
        found = tried("op")
        assert (found.state, bool(found.remedy)) == (BROKEN, True)
        assert str(library) in found.detail, found


def test_a_library_that_was_never_built_is_not_installed() -> None:
    def missing() -> Path:
        raise MissingDependencyError("libpom_onnxruntime.so (it) is not in this installation", "")

    with pytest.raises(NotInstalledError):
        probes._our_library(missing)


def test_a_wrong_number_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_features", lambda x, k: 1.001 * k[:, 0] * x)
    with pytest.raises(BrokenError, match="wrong numbers in the mode mean"):
        probes.op()


def test_a_damaged_plugin_is_broken(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried("plugin").state == OK
    (tmp_path / "cut.so").write_bytes(library.read_bytes()[:5000])
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(tmp_path / "cut.so"))
    assert f"load {tmp_path / 'cut.so'}" in tried("plugin").detail  # the loader crashes
    (tmp_path / "text.so").write_text("not a library")
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(tmp_path / "text.so"))
    assert "cannot be loaded" in tried("plugin").detail
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(custom_ops_library()))
    assert "has no getCreators" in tried("plugin").detail


@pytest.mark.usefixtures("tensorrt_rtx")
def test_tensorrt_for_rtx_loads_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried("tensorrt", "tensorrt-rtx")
    assert found.state == OK
    assert "loads our plugin" in found.detail
    (tmp_path / "cut.so").write_bytes(rtx_soname_library().read_bytes()[:100])
    monkeypatch.setenv("POM_RTX_SONAME_LIBRARY", str(tmp_path / "cut.so"))
    found = tried("tensorrt", "tensorrt-rtx")
    assert (found.state, found.remedy) == (BROKEN, "make setup")


def test_a_stub_of_tensorrt_is_not_installed(first: Path) -> None:
    stub(first, "tensorrt", "__version__ = '11.0'")
    assert tried("tensorrt", "tensorrt").state == NOT_INSTALLED


def test_a_package_that_is_not_there(first: Path) -> None:
    (first / "only_a_folder").mkdir()
    for name in ("no_such_package", "only_a_folder"):
        found = tried("package", name)
        assert (found.state, found.remedy) == (NOT_INSTALLED, "mend it")


@pytest.mark.parametrize(("code", "detail"), [
    ("print('hello'); raise OSError('libother.so: cannot open\\nmore')", "OSError: libother.so: cannot open"),
    ("import os, sys; print('terminate called', file=sys.stderr, flush=True); os.abort()", "SIGABRT.*terminate called"),
    ("import os; os._exit(3)", "exit code 3"),
    ("import time; time.sleep(60)", "did not answer within 3 seconds"),
])  # fmt: skip
def test_a_package_that_fails_crashes_or_hangs(
    code: str, detail: str, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "SECONDS", 3.0)
    stub(first, "tiktoken", code)
    found = tried("package", "tiktoken")
    assert found.state == BROKEN
    assert found.remedy
    assert re.search(detail, found.detail), found.detail


ONNXRUNTIME = "__version__ = {!r}\nInferenceSession = int\ndef get_available_providers(): return ['CPU']"


def test_an_onnxruntime_that_is_too_old(first: Path) -> None:
    stub(first, "onnxruntime", ONNXRUNTIME.format("1.20.1"))
    listed(first, "onnxruntime", "1.20.1")
    found = tried("onnxruntime")
    assert (found.state, found.detail) == (BROKEN, "version 1.20.1 is older than 1.22")
    assert found.remedy == "pip install 'onnxruntime>=1.22'"


def test_two_packages_of_onnxruntime(first: Path) -> None:
    listed(first, "onnxruntime-gpu", "1.30.0")
    found = tried("onnxruntime")
    assert found.state == BROKEN
    assert "several packages provide the same module" in found.detail
    assert found.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu>=")


def test_an_onnxruntime_that_overwrote_another(first: Path) -> None:
    listed(first, "onnxruntime", "1.25.0")
    found = tried("onnxruntime")
    assert found.state == BROKEN
    assert "was installed as 1.25.0: two installations are mixed" in found.detail


def test_a_model_file(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    pom_export.export(CHECKPOINT, model, mask="padding")
    found = tried("model", str(model))
    assert (found.state, "by our kernels as by its function" in found.detail) == (OK, True)
    pom_export.inline(model, tmp_path / "in.onnx")
    found = tried("model", str(tmp_path / "in.onnx"))
    assert (found.state, "1 aggregations, inlined, computed by standard operators" in found.detail) == (OK, True)
    content = model.read_bytes()
    model.write_bytes(content[:-1000])
    assert tried("model", str(model)).state == BROKEN
    # The function computes another leaky ReLU.
    import onnx

    proto = onnx.load_from_string(content)
    leaky = next(node for function in proto.functions for node in function.node if node.op_type == "LeakyRelu")
    leaky.attribute[0].f = 0.5
    model.write_bytes(proto.SerializeToString())
    found = tried("model", str(model))
    assert found.state == BROKEN
    assert "do not match" in found.detail


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["one fault", "every fault"])
def test_an_engine_and_its_manifest(every: bool, tmp_path: Path) -> None:
    import tensorrt_rtx as trt

    engine, manifest = tmp_path / "m.engine", tmp_path / "m.engine.json"
    engine.write_bytes(b"ftrt" + bytes(100))
    values = {"engine": "m.engine", "backend": "tensorrt-rtx", "backend_version": "1.0", "plugin_layers": 1,
              "model_sha256": "0" * 64, "targets": ["sm86"], "path": "function", "bytes": 104,
              "sha256": sha256_of(engine)}  # fmt: skip

    def detail(**changes: Any) -> str:
        manifest.write_text(json.dumps(sealed({**values, **changes})))
        found = tried("engine", str(engine))
        assert (found.state, bool(found.remedy)) == (BROKEN, True)
        return found.detail

    assert "it was built with tensorrt-rtx 1.0" in detail()
    if every:
        assert "unknown backend" in detail(backend="other")
        here = detail(backend_version=trt.__version__)
        assert "needs a GPU, and there is none here" in here if not gpu_present() else here
        engine.write_bytes(b"ftrt" + bytes(50))
        assert "is not what" in detail()
        manifest.write_text("{}")
        assert "is not one of ours" in tried("engine", str(engine)).detail
        manifest.unlink()
        assert "does not exist" in tried("engine", str(engine)).detail


NUMPY_1 = """
__version__ = "1.26.4"
class Numbers:
    def __pow__(self, _): return self
    def sum(self): return 14
def arange(_): return Numbers()
"""


def environment(folder: Path, setting: str) -> Path:
    """Return an environment whose Python is this one, with a setting."""
    (folder / "env" / "bin").mkdir(parents=True)
    python = folder / "env" / "bin" / "python"
    python.write_text(f'#!/bin/sh\n{setting} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return folder / "env"


def test_numpy_2_in_an_environment_for_triton(tmp_path: Path) -> None:
    found = programs.triton(str(environment(tmp_path, "")))
    if int(np.__version__.split(".")[0]) >= 2:
        assert (found.state, "gives wrong numbers silently" in found.detail) == (BROKEN, True)
        assert found.remedy.endswith("bin/python -m pip install 'numpy<2'")
    else:
        assert found.state == OK


def test_other_environments_for_triton(tmp_path: Path) -> None:
    stub(tmp_path, "numpy", NUMPY_1)
    env = environment(tmp_path, f"PYTHONPATH={tmp_path}")
    found = programs.triton(str(env))
    assert found.state == OK
    assert found.detail.startswith("NumPy 1.26.4 in Python 3.")
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('no BLAS')")
    assert "NumPy does not work" in programs.triton(str(env)).detail
    shutil.rmtree(env)
    assert "has no bin/python" in programs.triton(str(env)).detail


def test_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert programs.compiler().state == OK
    monkeypatch.setenv("CXX", shutil.which("false") or "")
    assert programs.compiler().state == BROKEN
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("CUDACXX", shutil.which("true") or "")
    assert programs.nvcc().detail.endswith("does not tell its version")
    old = tmp_path / "old-nvcc"
    old.write_text("#!/bin/sh\necho Cuda compilation tools, release 11.8, V11.8.89\n")
    old.chmod(0o755)
    monkeypatch.setenv("CUDACXX", str(old))
    assert programs.nvcc().detail.endswith("is 11.8, older than 12.8")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert programs.compiler().state == NOT_INSTALLED
