"""What only a GPU can show: an engine, with our plugin or without it, runs and agrees with PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

import pom_export
from pom_export.engine.backend import gpu_present

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_heads" / "checkpoint.pt"


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", ["none", "causal", "padding", "full"])
@pytest.mark.parametrize("path", ["plugin", "function"])
def test_an_engine_agrees_with_pytorch(path: str, mask: str, dtype: str, tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask=mask, dtype=dtype)
    pom_export.build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", use_plugin=path == "plugin")

    report = pom_export.verify(tmp_path / "m.onnx", checkpoint=CHECKPOINT, engine=tmp_path / "m.engine")

    assert report, report.to_dict()
    assert path in {c.path for c in report.comparisons if c.backend.startswith("tensorrt")}
