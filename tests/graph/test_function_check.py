"""A function that computes something other than its node says is found, however the file was rewritten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import pom_export
from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function_check import check_functions
from pom_export.graph.nodes import is_aggregation
from pom_export.mixer import PolynomialMixer

FIRST, SECOND, THIRD = contract.GATED_OP_NAMES[:3]


class Kinds(nn.Module):
    """Aggregations of three kinds, one of them of two nodes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third, self.fourth = (PolynomialMixer(8, 2, 2) for _ in range(4))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = x + self.first(x) + self.second(x, mask="causal")
        return x + self.third(x, mask=keep) + self.fourth(x)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kinds") / "m.onnx"
    pom_export.export(Kinds(), path, example_inputs=(torch.ones(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)))
    return path


@pytest.fixture
def model(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported)


def check(model: onnx.ModelProto) -> None:
    check_functions(Path("m.onnx"), model)


def function_named(model: onnx.ModelProto, name: str) -> onnx.FunctionProto:
    return next(function for function in model.functions if function.name == name)


def node_of(model: onnx.ModelProto, module: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if is_aggregation(node) and node.name.startswith(f"{module}/"))


def one_name(model: onnx.ModelProto) -> None:
    """What a tool does if it drops overloads or numbers."""
    for node in model.graph.node:
        if is_aggregation(node):
            node.op_type = FIRST
    del model.functions[1:]


def swapped(model: onnx.ModelProto) -> None:
    first, second = function_named(model, FIRST), function_named(model, SECOND)
    first.name, second.name = SECOND, FIRST


def changed(name: str, value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        node = node_of(model, "third")
        attributes = [each for each in node.attribute if each.name != name]
        del node.attribute[:]
        node.attribute.extend([*attributes, onnx.helper.make_attribute(name, value)])

    return change


def masked_by_a_product(model: onnx.ModelProto) -> None:
    """A masked token's NaN times 0 is NaN."""
    function = function_named(model, THIRD)
    where = next(node for node in function.node if node.op_type == "Where")
    index = list(function.node).index(where)
    weights = onnx.helper.make_node("Cast", [where.input[0]], ["weights"], to=onnx.TensorProto.FLOAT)
    product = onnx.helper.make_node("Mul", [where.input[1], "weights"], where.output)
    nodes = [*function.node[:index], weights, product, *function.node[index + 1 :]]
    del function.node[:]
    function.node.extend(nodes)


def made(function: onnx.FunctionProto, value: str) -> onnx.NodeProto:
    return next(node for node in function.node if value in node.output)


def clamped_elsewhere(model: onnx.ModelProto) -> None:
    """Few tokens have such low values."""
    function = function_named(model, FIRST)
    clip = next(node for node in function.node if node.op_type == "Clip")
    made(function, clip.input[1]).attribute[0].t.CopyFrom(numpy_helper.from_array(np.array(-0.2, np.float32)))


def without_empty_rows(model: onnx.ModelProto) -> None:
    """A mean over no tokens is 0, not 0 / 0."""
    function = function_named(model, THIRD)
    divisions = {node.output[0] for node in function.node if node.op_type == "Div"}
    where = next(node for node in function.node if node.op_type == "Where" and node.input[2] in divisions)
    where.CopyFrom(onnx.helper.make_node("Identity", [where.input[2]], where.output))


def without_an_input(model: onnx.ModelProto) -> None:
    del function_named(model, FIRST).input[-1]


def with_a_branch(model: onnx.ModelProto) -> None:
    function = function_named(model, FIRST)
    graph = onnx.helper.make_graph([onnx.helper.make_node("Neg", ["x"], ["n"])], "g", [], [])
    function.node.append(onnx.helper.make_node("If", ["x"], ["unused"], then_branch=graph, else_branch=graph))


def of_another_type(model: onnx.ModelProto) -> None:
    function = function_named(model, FIRST)
    function.node[-1].output[0] = "wide"
    function.node.append(onnx.helper.make_node("Cast", ["wide"], ["z"], to=onnx.TensorProto.DOUBLE))


def with_a_graph_in_half(model: onnx.ModelProto) -> None:
    """Convert the graph but not its functions, as other tools' converters do."""
    graph = model.graph
    graph.ClearField("value_info")
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT:
            half = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(half, weight.name))


@pytest.mark.parametrize(
    ("damage", "module", "function", "reason"),
    [
        (one_name, "second", FIRST, "z differs by"),
        (swapped, "first", FIRST, "it cannot be run on inputs like the node's"),
        (changed("mode", "causal"), "third", THIRD, "z differs by"),
        (changed("epsilon", 1e-2), "third", THIRD, "z differs by"),
        (changed("gate_activation", "identity"), "third", THIRD, "z differs by"),
        (changed("degree", 3), "third", THIRD, 'must be 0 in form "power", got 3'),
        (changed("form", "product"), "third", THIRD, "needs a degree of 1 to 16, got 0"),
        (masked_by_a_product, "third", THIRD, "z differs by inf"),
        (clamped_elsewhere, "first", FIRST, "z differs by"),
        (without_empty_rows, "third", THIRD, "z differs by inf"),
        (without_an_input, "first", FIRST, "takes 3 inputs, and the node has 4"),
        (with_a_branch, "first", FIRST, "it has branches or loops"),
        (of_another_type, "first", FIRST, "z is float64"),
        (with_a_graph_in_half, "first", FIRST, "the node is given float16, and the function computes in float32"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_function_of_something_else_is_refused(
    model: onnx.ModelProto, damage: Callable[[onnx.ModelProto], None], module: str, function: str, reason: str
) -> None:
    damage(model)
    with pytest.raises(InputError) as refused:
        check(model)
    assert f"node {module}/" in str(refused.value)
    assert f"its function pom::{function} do not match" in str(refused.value)
    assert reason in str(refused.value)


def test_what_a_state_has_lost_to_rounding_is_compared(tmp_path: Path) -> None:
    pom_export.export(PolynomialMixer(8, 2, 2), tmp_path / "m.onnx", stateful=True)
    model = onnx.load(tmp_path / "m.onnx")
    check(model)
    (function,) = model.functions
    halves = next(node for node in reversed(function.node) if node.op_type == "Concat" and len(node.input) == 2)
    lost = made(function, made(function, halves.input[1]).input[0])
    assert lost.op_type == "Add"
    lost.op_type = "Sub"
    with pytest.raises(InputError, match="present_state differs by"):
        check(model)


def renamed(model: onnx.ModelProto) -> None:
    for function in model.functions:
        names = {name: f"v{i}" for i, name in enumerate({n for node in function.node for n in node.output})}
        names |= {name: f"i{i}" for i, name in enumerate(function.input)}
        for node in function.node:
            node.name = ""
            node.input[:] = [names[name] for name in node.input]
            node.output[:] = [names[name] for name in node.output]
        function.input[:] = [names[name] for name in function.input]
        function.output[:] = [names[name] for name in function.output]


def reordered(model: onnx.ModelProto) -> None:
    """Sums in another order differ by rounding."""
    for function in model.functions:
        for node in function.node:
            if node.op_type in {"Add", "Mul"}:
                node.input[:] = reversed(node.input)


def with_axes_of_rank_1(model: onnx.ModelProto) -> None:
    """As earlier versions wrote them."""
    for function in model.functions:
        axes = {node.input[1] for node in function.node if node.op_type == "CumSum"}
        for node in function.node:
            if node.op_type == "Constant" and node.output[0] in axes:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.array([1])))


def without_shapes(model: onnx.ModelProto) -> None:
    del model.graph.value_info[:]


def without_defaults(model: onnx.ModelProto) -> None:
    for node in filter(is_aggregation, model.graph.node):
        kept = [each for each in node.attribute if each.name in {"mode", "gate_activation"}]
        del node.attribute[:]
        node.attribute.extend(kept)


@pytest.mark.parametrize(
    "rewrite", [renamed, reordered, with_axes_of_rank_1, without_shapes, without_defaults], ids=lambda f: f.__name__
)
def test_the_same_function_written_otherwise_is_taken(
    model: onnx.ModelProto, rewrite: Callable[[onnx.ModelProto], None]
) -> None:
    before = model.SerializeToString()
    rewrite(model)
    assert model.SerializeToString() != before
    check(model)
