"""Our plugin in the registry of a TensorRT that only opens the library, as ONNX Runtime's TensorRT provider does."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import pom_export
from pom_export.errors import MissingDependencyError
from pom_export.runtime import tensorrt_provider
from pom_export.runtime.providers import with_plugin
from tests.lean_runtimes import TENSORRT_10, TENSORRT_11, lean_library, run_python

SCRIPT = """
import ctypes, sys
from pathlib import Path
import tensorrt_lean_bindings as trt
from pom_export import contract
from pom_export.runtime.tensorrt_provider import register_creators

plugin, nvinfer = sys.argv[1:]
registry = trt.get_plugin_registry()
names = (*contract.OP_NAMES, *contract.GATED_OP_NAMES)
ctypes.CDLL(plugin)
assert not any(registry.get_creator(name, "1", "") for name in names), "opening the library is enough"
for _ in range(2):
    register_creators(Path(plugin), ctypes.CDLL(nvinfer))
for name in names:
    fields = trt.PluginFieldCollection([])
    assert registry.get_creator(name, "1", "").create_plugin("p", fields, trt.TensorRTPhase.RUNTIME) is None
print("registered")
"""


def register(version: str, library: Path) -> subprocess.CompletedProcess[str]:
    return run_python(version, "-c", SCRIPT, str(library), str(lean_library(version)))


@pytest.mark.slow
def test_the_creators_are_in_the_registry_afterwards(library: Path) -> None:
    done = register(TENSORRT_10, library)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "registered\n"
    assert "mode is missing" in done.stderr  # so the registry's creators are ours


@pytest.mark.slow
def test_another_tensorrt_is_refused(library: Path) -> None:
    """Its registry has other entries, and a call would crash the process."""
    done = register(TENSORRT_11, library)

    assert done.returncode == 1
    assert "EngineError: TensorRT 11 is installed" in done.stderr


@pytest.mark.usefixtures("library")
def test_without_tensorrt_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_provider, "_NVINFER", "libnvinfer-that-is-not-here.so")
    with pytest.raises(
        MissingDependencyError, match=r"libnvinfer-that-is-not-here\.so, which .* was not found"
    ) as error:
        pom_export.tensorrt_provider_options()
    assert "LD_LIBRARY_PATH" in str(error.value)


def test_options_name_our_library_beside_others(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_provider, "_NVINFER", None)  # this process's own symbols
    monkeypatch.setattr(tensorrt_provider, "register_creators", lambda *_: None)
    given = pom_export.tensorrt_provider_options(device_id=1, trt_extra_plugin_lib_paths="a.so")
    assert given == {"device_id": 1, "trt_extra_plugin_lib_paths": f"a.so;{library}"}
    assert pom_export.tensorrt_provider_options(**given) == given
    assert with_plugin(("TensorrtExecutionProvider", {"device_id": 1})) == (
        "TensorrtExecutionProvider",
        {"device_id": 1, "trt_extra_plugin_lib_paths": str(library)},
    )
    assert with_plugin(("CUDAExecutionProvider", {})) == ("CUDAExecutionProvider", {})
