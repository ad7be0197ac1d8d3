"""ONNX Runtime sessions, and the options that they are made with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import pom_export
from pom_export.errors import InputError
from pom_export.graph.schema import attributes
from tests import op_calls

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


def test_products_with_small_weights_round_no_activations(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    four = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [64, 8], random.integers(-7, 8, 512).tolist())
    scales = onnx.numpy_helper.from_array(random.uniform(0.1, 1, (2, 8)).astype(np.float32), "scales")
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21]> g (float[n, 64] x) => (float[n, 8] y, float[64, 8] restored) {
            restored = DequantizeLinear <axis = 0, block_size = 32> (w, scales)
            y = MatMul(x, restored)
        }"""
    )
    model.graph.initializer.extend([four, scales])
    with_weight = tmp_path / "two.onnx"
    onnx.save(model, with_weight)
    del model.graph.output[1]
    onnx.save(model, tmp_path / "one.onnx")

    x = random.standard_normal((5, 64)).astype(np.float32)
    _, restored = pom_export.inference_session(with_weight).run(None, {"x": x})
    ours = pom_export.inference_session(tmp_path / "one.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(ours, x @ restored, rtol=1e-5, atol=1e-4)
    # ONNX Runtime's own default would.
    plain = onnxruntime.InferenceSession(tmp_path / "one.onnx").run(None, {"x": x})[0]
    assert np.abs(plain - x @ restored).max() > 0.01


def test_options_of_another_kind_are_refused(tmp_path: Path) -> None:
    pom_export.export(CHECKPOINT, tmp_path / "m.onnx", mask="causal")
    with pytest.raises(InputError, match="session_options is a dict"):
        pom_export.inference_session(tmp_path / "m.onnx", session_options={})


@pytest.mark.parametrize("version", ["1.22.0", "1.23.2"])
def test_an_empty_input_is_refused_where_onnxruntime_crashes_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    feeds = {"x": np.ones((1, 3, 4), np.float32), "coefficients": np.ones((4, 2), np.float32)}
    rotation = {name: np.ones((3, 2), np.float32) for name in ("cos", "sin")}
    for name, given in (("whole", feeds), ("gap", feeds | rotation)):
        onnx.save(op_calls.model(given, attributes("mean")), tmp_path / f"{name}.onnx")
    monkeypatch.setattr(onnxruntime, "__version__", version)

    with pytest.raises(
        InputError,
        match=rf"input 2 of PolynomialAggregation '' is empty, and ONNX Runtime {version} would crash on it",
    ):
        pom_export.inference_session(tmp_path / "gap.onnx")
    assert pom_export.inference_session(tmp_path / "whole.onnx").run(None, feeds)
