"""Operators that other runtimes shorten are written out, and compute the same."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pom_export.graph.passes import SpellOutPass
from pom_export.runtime.session import default_session_options


def rewritten(
    nodes: list[onnx.NodeProto], kind: int = TensorProto.FLOAT, constants: dict[str, Any] | None = None
) -> tuple[onnx.ModelProto, bool]:
    """Return a graph from x to y after the pass, and whether the pass says that it changed it."""
    x, y = (helper.make_tensor_value_info(name, kind, ["n", 3]) for name in "xy")
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", [x], [y], weights)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    modified = SpellOutPass()(model).modified
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, modified


X = np.array([[-3.0, -0.5, 0.0], [0.25, 1.0, 4.0]], np.float32)
GELU = np.array([[v / 2 * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in X.tolist()])


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_gelu_is_its_definition_in_float32(kind: str) -> None:
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    proto, modified = rewritten([helper.make_node("Gelu", ["x"], ["y"])], helper.np_dtype_to_tensor_dtype(dtype))
    assert modified
    ops = [node.op_type for node in proto.graph.node]
    assert [op for op in ops if op != "Cast"] == ["Div", "Erf", "Mul", "Add", "Mul"]
    assert ops.count("Cast") == (0 if kind == "float32" else 2)
    (y,) = ReferenceEvaluator(proto).run(None, {"x": X.astype(dtype)})
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(np.float64), GELU, rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-7)


def test_onnxruntime_makes_it_one_node_again(tmp_path: Path) -> None:
    proto, _ = rewritten([helper.make_node("Gelu", ["x"], ["y"])])
    options = default_session_options()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["Gelu"]
    np.testing.assert_allclose(session.run(None, {"x": X})[0], GELU, rtol=1e-5, atol=1e-7)


def test_two_gelus_share_their_constants() -> None:
    proto, _ = rewritten([helper.make_node("Gelu", ["x"], ["a"]), helper.make_node("Gelu", ["a"], ["y"])])
    assert len(proto.graph.initializer) == 3
    names = [node.name for node in proto.graph.node] + [node.output[0] for node in proto.graph.node]
    assert len(set(names)) == len(names)


def test_an_approximate_gelu_stays() -> None:
    proto, modified = rewritten([helper.make_node("Gelu", ["x"], ["y"], approximate="tanh")])
    assert not modified
    assert [node.op_type for node in proto.graph.node] == ["Gelu"]


@pytest.mark.parametrize(
    ("axis", "given", "expected"),
    [([1], {}, np.cumsum(X, 1)), (1, {"reverse": 1}, np.cumsum(X[:, ::-1], 1)[:, ::-1])],
    ids=["an axis of rank 1", "reverse"],
)
def test_cumsum_has_a_scalar_axis_and_both_flags(axis: Any, given: dict[str, int], expected: Any) -> None:
    proto, modified = rewritten([helper.make_node("CumSum", ["x", "axis"], ["y"], **given)], constants={"axis": axis})
    assert modified
    (node,) = proto.graph.node
    assert {attribute.name: attribute.i for attribute in node.attribute} == {"exclusive": 0, "reverse": 0, **given}
    (named,) = (each for each in proto.graph.initializer if each.name == node.input[1])
    assert list(named.dims) == []
    (y,) = ReferenceEvaluator(proto).run(None, {"x": X})
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_a_complete_cumsum_stays() -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], exclusive=0, reverse=0)
    assert not rewritten([node], constants={"axis": 1})[1]
