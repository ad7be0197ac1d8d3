"""Aggregations are found in functions and branches as well, and named where they are in loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

import pom_export
from pom_export.graph.exported_model import read_model
from pom_export.parity.plain_cases import PlainInputs
from tests.plain_graphs import AGGREGATES, WIDTH, attribute, plain_graph, run

_FLOAT, _BOOL = onnx.TensorProto.FLOAT, onnx.TensorProto.BOOL
_SHAPE = ["batch", "tokens", WIDTH]


def branch(aggregate: str, prefix: str) -> onnx.GraphProto:
    """Return a mixer of the `x` outside, with its own weights."""
    model = onnx.compose.add_prefix(plain_graph(aggregate=AGGREGATES[aggregate]), prefix, rename_functions=False)
    graph = model.graph
    for node in graph.node:
        node.input[:] = ["x" if name == f"{prefix}x" else name for name in node.input]
    del graph.input[:]
    return graph


def with_branches() -> onnx.ModelProto:
    """Return a model of x and flag that takes means of all tokens, or of the earlier ones."""
    node = helper.make_node(
        "If", ["flag"], ["y"], "choice", then_branch=branch("mean", "a_"), else_branch=branch("triangle", "b_")
    )
    inputs = [helper.make_tensor_value_info("x", _FLOAT, _SHAPE), helper.make_tensor_value_info("flag", _BOOL, [])]
    outputs = [helper.make_tensor_value_info("y", _FLOAT, _SHAPE)]
    opsets = [helper.make_opsetid("", 20)]
    return helper.make_model(helper.make_graph([node], "g", inputs, outputs), ir_version=8, opset_imports=opsets)


def branches_of(path: Path) -> dict[str, list[str]]:
    """Return the modes of the aggregations in the branches of a file."""
    (node,) = onnx.load(path).graph.node
    return {
        each.name: [attribute(inner, "mode") for inner in each.g.node if inner.domain == "pom"]
        for each in node.attribute
    }


def test_branches(tmp_path: Path) -> None:
    model = with_branches()
    onnx.save(model, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left) == (2, [])
    assert branches_of(tmp_path / "out.onnx") == {"then_branch": ["mean"], "else_branch": ["causal"]}
    session = pom_export.inference_session(tmp_path / "out.onnx")
    x = np.random.default_rng(0).standard_normal((2, 7, WIDTH)).astype(np.float32)
    for flag in (True, False):
        feed = {"x": x, "flag": np.array(flag)}
        np.testing.assert_allclose(session.run(None, feed)[0], run(model, feed), rtol=1e-5, atol=1e-6)
    again = pom_export.fuse(tmp_path / "out.onnx", tmp_path / "no.onnx")
    assert (again.fused, again.kept) == (0, 2)


def test_both_branches_are_compared(tmp_path: Path) -> None:
    onnx.save(with_branches(), tmp_path / "plain.onnx")

    cases = list(PlainInputs(read_model(tmp_path / "plain.onnx").inputs, {}, ()).cases())

    assert {bool(case.feed["flag"]) for case in cases if case.name in {"typical", "one token"}} == {True, False}


def test_loops_are_named(tmp_path: Path) -> None:
    body = branch("mean", "a_")
    body.input.extend([
        helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
        helper.make_tensor_value_info("go", _BOOL, []),
        helper.make_tensor_value_info("carried", _FLOAT, _SHAPE),
    ])  # fmt: skip
    body.node.append(helper.make_node("Identity", ["go"], ["on"]))
    body.output.insert(0, helper.make_tensor_value_info("on", _BOOL, []))
    twice = helper.make_tensor("twice", onnx.TensorProto.INT64, [], [2])
    node = helper.make_node("Loop", ["twice", "", "x"], ["y"], "repeated", body=body)
    x, y = (helper.make_tensor_value_info(name, _FLOAT, _SHAPE) for name in ("x", "y"))
    graph = helper.make_graph([node], "g", [x], [y], [twice])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=opsets), tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert not result
    assert [each["reason"] for each in result.left] == [
        "it is in the body of a Loop, and only those outside, and in branches of an If, are fused"
    ]


def test_functions(tmp_path: Path) -> None:
    model = plain_graph(aggregate=AGGREGATES["mean"])
    weights = [each.name for each in model.graph.initializer]
    nodes, opsets = list(model.graph.node), [helper.make_opsetid("", 20)]
    function = helper.make_function("theirs", "Mixer", ["x", *weights], ["result"], nodes, opsets)
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Mixer", ["x", *weights], ["result"], domain="theirs"))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("theirs", 1))
    onnx.save(model, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left) == (1, [])
