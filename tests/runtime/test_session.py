"""ONNX Runtime sessions: which providers they get, and with what."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

import pom_export
from pom_export.errors import MissingDependencyError
from pom_export.runtime import session

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_heads" / "checkpoint.pt"
KEY = "trt_extra_plugin_lib_paths"


@pytest.fixture(scope="module")
def plugin() -> str:
    try:
        return str(pom_export.plugin_library())
    except MissingDependencyError as error:
        pytest.skip(str(error))


def test_tensorrt_finds_our_plugin_beside_others(plugin: str) -> None:
    assert pom_export.tensorrt_provider_options() == {KEY: plugin}
    given = pom_export.tensorrt_provider_options(trt_fp16_enable=True, trt_extra_plugin_lib_paths="a.so")
    assert given == {"trt_fp16_enable": True, KEY: f"a.so;{plugin}"}
    assert pom_export.tensorrt_provider_options(**given) == given


def test_a_session_tells_tensorrt_of_our_plugin(plugin: str) -> None:
    providers = [("TensorrtExecutionProvider", {"device_id": 1}), "TensorrtExecutionProvider", "CUDAExecutionProvider"]

    assert list(map(session._with_plugin, providers)) == [
        ("TensorrtExecutionProvider", {"device_id": 1, KEY: plugin}),
        ("TensorrtExecutionProvider", {KEY: plugin}),
        "CUDAExecutionProvider",
    ]


def test_a_provider_that_is_not_here_leaves_the_work_to_the_next(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    x = np.random.default_rng(0).normal(size=(1, 9, 32)).astype(np.float32)
    (expected,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ONNX Runtime's own, where it lacks the providers
        used = pom_export.inference_session(
            tmp_path / "m.onnx", ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        )
    np.testing.assert_allclose(used.run(None, {"x": x})[0], expected, rtol=1e-5, atol=1e-6)
