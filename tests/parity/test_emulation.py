"""A half-precision model computes in float32 with half rounding, whatever its nodes take their types from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from pom_export.parity.emulation import EmulatedRunner


@pytest.mark.parametrize("rounds", [True, False])
def test_constants_have_the_type_that_an_attribute_says(tmp_path: Path, rounds: bool) -> None:
    half = TensorProto.FLOAT16
    value = helper.make_tensor("value", half, [1], [0.1])
    graph = helper.make_graph(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("ConstantOfShape", ["shape"], ["tenths"], value=value),
            helper.make_node("Mul", ["x", "tenths"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", half, ["batch"])],
        [helper.make_tensor_value_info("y", half, ["batch"])],
        value_info=[helper.make_tensor_value_info("tenths", half, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx")
    x = np.array([1, 3], np.float16)
    with EmulatedRunner("emulated", tmp_path / "m.onnx", kernels=False, rounds=rounds) as runner:
        (y,) = runner.infer({"x": x}).values()
    exact = x.astype(np.float32) * np.float32(np.float16(0.1))
    np.testing.assert_array_equal(y, exact.astype(np.float16).astype(np.float32) if rounds else exact)
