"""The values that connect modules are found by the names of nodes."""

from __future__ import annotations

import onnx
import onnx_ir as ir
from onnx import TensorProto, helper

from pom_export.graph.module_values import ModuleValues


def graph(*nodes: onnx.NodeProto) -> ir.Model:
    floats = {"elem_type": TensorProto.FLOAT, "shape": ["n"]}
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", **floats)],
        [helper.make_tensor_value_info(nodes[-1].output[0], **floats)],
        [helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])],
    )
    return ir.from_proto(helper.make_model(made))


def node(op: str, given: str, made: str, name: str) -> onnx.NodeProto:
    return helper.make_node(op, given.split(), [made], name=name)


MODEL = (
    node("Relu", "x", "a", "one.inner/Relu"),
    node("Mul", "a w", "b", "one/Mul"),
    node("Abs", "b", "c", ""),
    node("Add", "c x", "y", "Add"),
)


def test_what_enters_and_leaves() -> None:
    found = ModuleValues(graph(*MODEL), {"one", "one.inner"})
    (one,), (inner,), (whole,) = (found.calls(name) for name in ("one", "one.inner", ""))
    assert (one.entering, one.leaving) == (["x"], ["c"])  # a node of another tool belongs to the module before it
    assert (inner.entering, inner.leaving) == (["x"], ["a"])
    assert (whole.entering, whole.leaving) == (["x"], ["y"])
    assert [node.op_type for node in one.own] == ["Mul", "Abs"]
    assert [node.op_type for node in whole.own] == ["Add"]


def test_names_alone_tell_the_modules() -> None:
    assert ModuleValues(graph(*MODEL)).modules == {"", "one", "one.inner"}


def test_a_part_that_is_no_module_belongs_to_the_one_around_it() -> None:
    found = ModuleValues(graph(*MODEL), {"one"})
    (one,) = found.calls("one")
    assert len(one.own) == 3


def test_calls_are_told_apart_if_they_are_alike() -> None:
    twice = [node("Relu", "x", "a", "f/Relu"), node("Abs", "a", "b", "f/Abs")]
    twice += [node("Relu", "b", "c", "f/Relu_1"), node("Abs", "c", "y", "f/Abs_1")]
    found = ModuleValues(graph(*twice), {"f"})
    assert [(call.entering, call.leaving) for call in found.calls("f", 2)] == [(["x"], ["b"]), (["b"], ["y"])]
    assert found.calls("f", 3) == []
    assert ModuleValues(graph(*twice[:-1], node("Neg", "c", "y", "f/Neg")), {"f"}).calls("f", 2) == []
    assert found.calls("g") == []
