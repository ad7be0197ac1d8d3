"""ONNX Runtime sessions: which providers they get, and with what."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import pom_export
from pom_export.errors import InputError

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_heads" / "checkpoint.pt"


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


def test_session_options_serve_any_number_of_calls(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    x = np.ones((1, 3, 32), np.float32)
    one, other = (
        pom_export.inference_session(tmp_path / "m.onnx", session_options=options).run(None, {"x": x})[0]
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, other)
    assert options.intra_op_num_threads == 1
    with pytest.raises(InputError, match="hold our kernels from an earlier call"):
        pom_export.inference_session(tmp_path / "m.onnx", kernels=False, session_options=options)

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(pom_export.custom_ops_library()))
    with pytest.raises(InputError, match="Don't register our library"):
        pom_export.inference_session(tmp_path / "m.onnx", session_options=options)


def test_options_and_providers_of_another_kind_are_refused(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    assert pom_export.inference_session(tmp_path / "m.onnx", "CPUExecutionProvider")  # a name alone
    with pytest.raises(InputError, match="session_options is a dict"):
        pom_export.inference_session(tmp_path / "m.onnx", session_options={})
    with pytest.raises(InputError, match="cannot load"):
        pom_export.inference_session(tmp_path / "m.onnx", ["NoSuchProvider"])
