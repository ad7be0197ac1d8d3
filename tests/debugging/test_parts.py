"""A part of a file computes its values from those that it is given, also in branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from pom_export.debugging.parts import FileParts

MODEL = """
<ir_version: 9, opset_import: ["": 20]>
whole (float[n] x, bool far) => (float[n] y)
<float[2] w = {1, 10}, float[2] v = {5, 6}>
{
    unused = Add(x, v)
    h = Mul(x, w)
    k = Neg(h)
    y = If(far) <
        then_branch = near () => (float[n] a) { a = Add(h, k) },
        else_branch = other () => (float[n] b) { b = Sub(h, k) }
    >
}
"""


@pytest.fixture
def parts(tmp_path: Path) -> FileParts:
    onnx.save(parser.parse_model(MODEL), tmp_path / "m.onnx")
    return FileParts(tmp_path / "m.onnx", kernels=False)


def test_branches_read_what_is_given(parts: FileParts) -> None:
    h, feed = np.array([3, 4], np.float32), {"x": np.zeros(2, np.float32), "far": np.array(False)}
    assert parts.run(["y"], {"h": h}, feed)["y"].tolist() == [6, 8]
    assert parts.run(["y"], {"h": h, "k": np.ones(2, np.float32)}, feed)["y"].tolist() == [2, 3]


def test_a_value_that_is_given_may_be_asked_for(parts: FileParts) -> None:
    feed = {"x": np.ones(2, np.float32), "far": np.array(False)}
    found = parts.run(["h", "k"], {"h": np.zeros(2)}, feed)
    assert {name: array.tolist() for name, array in found.items()} == {"h": [1, 10], "k": [0, 0]}
    assert parts.run(["h"], {"x": np.full(2, 2.0)}, feed)["h"].tolist() == [2, 20]
