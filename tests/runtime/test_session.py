"""ONNX Runtime sessions, and the options that they are made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import pom_export
from pom_export.errors import InputError

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_heads" / "checkpoint.pt"


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


def test_options_of_another_kind_are_refused(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    with pytest.raises(InputError, match="session_options is a dict"):
        pom_export.inference_session(tmp_path / "m.onnx", session_options={})
