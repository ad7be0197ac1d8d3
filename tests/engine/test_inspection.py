"""What TensorRT's inspector reports, with a GPU and without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import pom_export
from pom_export.engine import inspection
from pom_export.engine.backend import Backend, gpu_present, load_backend
from pom_export.engine.inspection import EngineLayers, inspect_engine

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


def test_layers_are_counted() -> None:
    half, single = ({"Name": "t", "Dimensions": [1, 8], "Format/Datatype": kind} for kind in ("Half", "Float"))
    layers = [
        {"Name": "a", "LayerType": "gemm", "Outputs": [half]},
        {"Name": "b", "LayerType": "PluginV3", "Outputs": [half, single]},
        {"Name": "c", "LayerType": "NoOp"},
    ]
    assert EngineLayers.of(json.dumps({"Layers": layers})) == EngineLayers(3, 1, {"Half": 2, "Float": 1})


class TensorRT:
    """A double that, like TensorRT, loads an engine with an embedded plugin only if that is allowed."""

    class ILogger:
        pass

    class LayerInformationFormat:
        JSON = "json"

    class Runtime:
        def __init__(self, _: Any) -> None:
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, _: bytes) -> Any:
            return self if self.engine_host_code_allowed else None

        def create_engine_inspector(self) -> Any:
            return self

        def get_engine_information(self, _: str) -> str:
            return json.dumps({"Layers": [{"LayerType": "PluginV3"}]})


def test_an_engine_with_the_plugin_inside_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "gpu_present", lambda: True)
    said: list[str] = []
    assert inspect_engine(b"engine", Backend("tensorrt", "10", TensorRT), False, said.append) == EngineLayers(1, 1, {})
    assert said == []


@pytest.mark.machine
@pytest.mark.skipif(gpu_present(), reason="a CUDA device is here")
@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_that_cannot_be_loaded_here_is_not_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    backend = load_backend("tensorrt-rtx")
    assert inspect_engine(b"engine", backend, True, said.append) is None
    assert said == []
    monkeypatch.setattr(inspection, "gpu_present", lambda: True)
    assert inspect_engine(b"engine", backend, True, said.append) is None
    assert len(said) == 1
    assert "cannot be listed here" in said[0]


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_precision_asked_for_is_the_precision_got(dtype: str, tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal", dtype=dtype)
    info = pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "e")
    assert info.inspected is not None
    assert info.inspected["plugin_layers"] == info.plugin_layers == 1
    words = {"float32": ("FP32", "Float"), "float16": ("FP16", "Half"), "bfloat16": ("BF16", "BFloat16")}[dtype]
    assert any(word in name for name in info.inspected["formats"] for word in words), info.inspected
