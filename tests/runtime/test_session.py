"""ONNX Runtime sessions: which providers they get, and with what."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

import pom_export

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
