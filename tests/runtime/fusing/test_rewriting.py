"""Graphs with fused nodes, whose programs NumPy runs, against the graphs that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import pom_export
from pom_export.graph.quantized.block_weights import pack_blocks
from pom_export.graph.saving import save_model
from pom_export.mixer import PolynomialMixer
from pom_export.runtime.fusing.rewriting import Fused, fused
from tests.quantized_files import FORMS, quantize, rounded
from tests.runtime.fusing.executor import run_graph
from tests.runtime.fusing.files import (
    LANGUAGE_MODELS,
    MIXERS,
    MOST,
    agreement,
    fills,
    golden_file,
    layers_file,
    named,
    operators,
)


def check(file: Path, rows: int = 2, tokens: int = 7) -> Fused:
    """Rewrite a file and compare; return what was made."""
    made = fused(file)
    assert made is not None
    feed = fills(file, rows, tokens)
    proto = ir.serde.serialize_model(made.model)
    onnx.checker.check_model(proto)
    wanted = named(pom_export.inference_session(file, fused=False), feed)
    assert agreement(run_graph(proto, feed), wanted) > MOST
    return made


@pytest.mark.parametrize("opset", [18, 20, 23])
def test_all_that_is_between_products_is_fused(tmp_path: Path, opset: int) -> None:
    made = check(layers_file(tmp_path, opset=opset))
    left = operators(made.model)
    # What is left is Gelu's approximation by tanh, which no program has.
    assert left["FusedLayers"] == 2
    assert left.keys() - {"FusedLayers", "Gelu"} <= {"Pow", "Mul", "Add", "Tanh"}
    assert made.operators["MatMulNBits"] == 12
    assert made.operators["GatedPolynomialAggregation"] == 1


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_language_model_is_one_node_and_its_embedding(name: str, tmp_path: Path) -> None:
    file = golden_file(name, tmp_path, stateful=True)
    made = check(file)
    left = operators(made.model)
    assert made.operators["MatMulNBits"] == operators(ir.load(file))["MatMulNBits"]
    assert not {"MatMulNBits", "GatedPolynomialAggregation", "Gelu", "Conv", "ReduceMean"} & left.keys()
    # Two layers of the hybrid are attention.
    assert left["FusedLayers"] == (3 if name == "gpt_hybrid" else 1)


def changed(file: Path, change: Callable[[ir.Graph], None]) -> Path:
    """Return a copy of a file whose graph was changed."""
    model = ir.load(file)
    change(model.graph)
    save_model(model, file.with_name("changed.onnx"))
    return file.with_name("changed.onnx")


def stacks(graph: ir.Graph) -> ir.Node:
    """Return the node that joins the states of all layers."""
    (state,) = (value for value in graph.outputs if value.name == "present_state")
    node = state.producer()
    assert node is not None
    assert node.op_type == "Concat"
    return node


def test_a_node_reads_and_writes_the_states_of_all_layers(tmp_path: Path) -> None:
    made = check(golden_file("gpt_pom", tmp_path, stateful=True))
    (node,) = (node for node in made.model.graph if node.op_type == "FusedLayers")
    assert "past_state" in {value.name for value in node.inputs}
    assert "present_state" in {value.name for value in node.outputs}
    assert made.operators["Slice"] == made.operators["Unsqueeze"] == made.operators["GatedPolynomialAggregation"]


def exchange(graph: ir.Graph) -> None:
    concat = stacks(graph)
    first, second = concat.inputs[:2]
    concat.replace_input_with(0, second)
    concat.replace_input_with(1, first)


def use_twice(graph: ir.Graph) -> None:
    value = stacks(graph).inputs[0]
    assert value is not None
    node = ir.node("Identity", [value])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "twice", value.type, value.shape
    graph.append(node)
    graph.outputs.append(node.outputs[0])


@pytest.mark.parametrize("change", [exchange, use_twice])
def test_states_in_another_order_or_of_other_users_stay_apart(tmp_path: Path, change: Any) -> None:
    made = check(changed(golden_file("gpt_pom", tmp_path, stateful=True), change))
    assert made.operators["Slice"] == 0
    assert made.operators["GatedPolynomialAggregation"] > 1


def test_a_file_without_shapes(tmp_path: Path) -> None:
    """They are inferred as far as other operators go; steps tell the rest."""
    file = golden_file("gpt_pom_heads", tmp_path, stateful=True)
    model = onnx.load(file)
    model.graph.ClearField("value_info")
    onnx.save(model, tmp_path / "bare.onnx")
    made = check(tmp_path / "bare.onnx")
    assert operators(made.model)["FusedLayers"] == 1
    assert made.operators["MatMulNBits"] == operators(ir.load(file))["MatMulNBits"]


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_with_a_state(name: str, tmp_path: Path) -> None:
    file = golden_file(name, tmp_path, stateful=True)
    made = check(file, rows=3, tokens=5)
    assert made.operators["MatMulNBits"] == operators(ir.load(file))["MatMulNBits"]
    assert made.operators["GatedPolynomialAggregation"] == 1


@pytest.mark.parametrize("name", ["v2_base", "v1_degree3"])
def test_a_mean_over_tokens_is_not_fused(name: str, tmp_path: Path) -> None:
    made = check(golden_file(name, tmp_path))
    assert operators(made.model) == {"FusedLayers": 2, "GatedPolynomialAggregation": 1}


@pytest.mark.parametrize("form", [form for form in FORMS if form not in {"int4 blocks", "int8 blocks"}])
def test_other_forms_of_weights_stay(tmp_path: Path, form: str) -> None:
    layers_file(tmp_path)
    quantize(tmp_path / "m.onnx", tmp_path / "other.onnx", form)
    assert fused(tmp_path / "other.onnx") is None


def test_a_float32_file_stays(tmp_path: Path) -> None:
    layers_file(tmp_path)
    assert fused(tmp_path / "m.onnx") is None


def test_the_file_stays_as_it_is(tmp_path: Path) -> None:
    file = layers_file(tmp_path)
    before = file.read_bytes()
    fused(file)
    assert file.read_bytes() == before


def test_scratch_is_used_again(tmp_path: Path) -> None:
    made = fused(golden_file("gpt_pom", tmp_path))
    assert made is not None
    (node,) = (node for node in made.model.graph if node.op_type == "FusedLayers")
    slots = node.attributes["program"].as_ints()[1]
    # The residual stream, what is made of it, the MLP's and the mixer's inner values, and the output.
    assert slots <= 8


class Grouped(nn.Module):
    """Two products in groups of channels, which share their first transposition, and one of all channels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Conv1d(32, 64, 1, groups=4), nn.Conv1d(32, 64, 1, groups=2, bias=False)
        self.plain, self.mixer = nn.Conv1d(64, 32, 1), PolynomialMixer(32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        turned = x.transpose(1, 2)
        total = self.one(turned).transpose(1, 2) + self.other(turned).transpose(1, 2)
        return self.mixer(self.plain(total.transpose(1, 2)).transpose(1, 2), mask="causal")


def test_grouped_products_share_a_transposition(tmp_path: Path) -> None:
    pom_export.export(Grouped(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 5, 32),))
    quantize(tmp_path / "m.onnx", tmp_path / "q.onnx")
    made = check(tmp_path / "q.onnx")
    assert operators(made.model) == {"FusedLayers": 1}
    assert made.operators["Conv"] == 3


class Graph:
    """A graph of int4 products by hand. Values have 16 columns."""

    WIDTH = 16

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, array: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return self.constants[-1].name

    def node(self, op_type: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, domain=domain, **attributes))
        return name

    def product(self, x: str, **changes: object) -> str:
        weight = rounded(self.random.standard_normal((self.WIDTH, self.WIDTH), dtype=np.float32), 4, 16)
        packed, scales = self.constant(pack_blocks(weight)), self.constant(weight.scales.T.copy())
        numbers = {"K": 16, "N": 16, "bits": 4, "block_size": 16, "accuracy_level": 4, **changes}
        return self.node("MatMulNBits", x, packed, scales, domain="com.microsoft", **numbers)

    def save(self, path: Path, *outputs: str, shape: tuple[object, ...] = ("batch", "tokens", 16)) -> Path:
        """Save the graph of the input x; every value has the same shape."""
        made = [node.output[0] for node in self.nodes if node.output[0] != "computed"]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in made]
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
            self.constants,
            value_info=[value for value in values if value.name not in outputs],
        )
        imports = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("f", 1)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9, functions=self.functions)
        save_model(ir.serde.deserialize_model(model), path)
        return path


@pytest.fixture
def graph() -> Graph:
    return Graph()


def test_an_output_inside_of_a_run_is_one_of_the_node(graph: Graph, tmp_path: Path) -> None:
    a = graph.product("x")
    b = graph.node("Relu", a)
    c = graph.node("Add", graph.product(b), "x")
    made = check(graph.save(tmp_path / "g.onnx", b, c, a))
    assert operators(made.model) == {"FusedLayers": 1}


def test_a_value_that_is_used_outside_is_an_output(graph: Graph, tmp_path: Path) -> None:
    a = graph.product("x")
    b = graph.node("Tanh", a)
    c = graph.node("Add", graph.product(a), b)
    made = check(graph.save(tmp_path / "g.onnx", c))
    # The sum needs what is made outside of the first product, so it is not in its node.
    assert operators(made.model) == {"FusedLayers": 1, "Tanh": 1, "Add": 1}


def test_a_path_that_leaves_and_comes_back_splits_a_run(graph: Graph, tmp_path: Path) -> None:
    a = graph.product("x")
    b = graph.node("Tanh", a)
    c = graph.node("Add", graph.product(b), a)
    d = graph.product(graph.node("Mul", c, graph.node("Relu", a)))
    made = check(graph.save(tmp_path / "g.onnx", d))
    assert operators(made.model) == {"FusedLayers": 2, "Tanh": 1}


def test_a_product_that_stays_in_float32_splits_a_run(graph: Graph, tmp_path: Path) -> None:
    a = graph.product("x")
    b = graph.node("MatMul", a, graph.constant(np.eye(16, dtype=np.float32) / 2))
    made = check(graph.save(tmp_path / "g.onnx", graph.product(graph.node("Add", b, a))))
    assert operators(made.model) == {"FusedLayers": 2, "MatMul": 1}


def test_all_of_an_epilogue_is_one_instruction(graph: Graph, tmp_path: Path) -> None:
    bias, factor = graph.constant(np.ones((1, 1, 16), np.float32)), graph.constant(np.array(0.5, np.float32))
    a = graph.node("Gelu", graph.node("Add", bias, graph.product("x")))
    made = check(graph.save(tmp_path / "g.onnx", graph.node("Add", "x", graph.node("Mul", factor, a))))
    (node,) = made.model.graph
    numbers = node.attributes["program"].as_ints()
    # version, one slot, one output, its width, its value; then the product with GELU, a factor and a sum
    assert numbers == (2, 1, 1, 16, 3, 1, 10, 0, 1, 2, 0, 3, 16, 16, 16, 1, 0)
    assert node.attributes["constants"].as_floats() == (0.5,)


def test_the_same_value_on_both_sides(graph: Graph, tmp_path: Path) -> None:
    a = graph.product("x")
    b = graph.product(graph.node("Add", a, a))
    c = graph.product(graph.node("Mul", b, b))
    check(graph.save(tmp_path / "g.onnx", c))


def test_a_factor_before_an_activation_stays_before_it(graph: Graph, tmp_path: Path) -> None:
    a = graph.node("Mul", graph.product("x"), graph.constant(np.array([-2], np.float32)))
    b = graph.node("Relu", a)
    check(graph.save(tmp_path / "g.onnx", graph.node("Relu", graph.node("Add", b, "x"))))


def test_two_factors_are_not_joined(graph: Graph, tmp_path: Path) -> None:
    """What is too small between the two is lost."""
    small, large = (graph.constant(np.array(number, np.float32)) for number in (1e-40, 1e30))
    a = graph.node("Mul", graph.node("Mul", graph.product("x"), small), large)
    made = check(graph.save(tmp_path / "g.onnx", a))
    (node,) = made.model.graph
    assert len(node.attributes["constants"].as_floats()) == 2


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(graph: Graph, tmp_path: Path, seed: int) -> None:
    """Whatever depends on whatever, and is used wherever."""
    random = np.random.default_rng(seed)
    values = ["x"]
    for _ in range(int(random.integers(4, 25))):
        one, other = (values[-1 - min(int(random.geometric(0.4)) - 1, len(values) - 1)] for _ in range(2))
        kind = random.choice(["product", "product", "Add", "Mul", "Relu", "Gelu", "factor", "bias", "Tanh"])
        if kind == "product":
            made = graph.node("Mul", graph.product(one), graph.constant(np.array(0.25, np.float32)))
        elif kind in {"Add", "Mul"}:
            made = graph.node(kind, graph.node("Tanh", one) if random.random() < 0.2 else one, other)
        elif kind == "factor":
            made = graph.node("Mul", graph.constant(np.array([[-0.5]], np.float32)), one)
        elif kind == "bias":
            made = graph.node("Add", one, graph.constant(random.standard_normal(16, dtype=np.float32)))
        else:
            made = graph.node(kind, one)
        values.append(made)
    used = [name for node in graph.nodes for name in node.input]
    outputs = [name for name in values[1:] if name not in used or random.random() < 0.2]
    file = graph.save(tmp_path / "g.onnx", *outputs, graph.product(outputs[-1]))
    check(file)
    session = pom_export.inference_session(file)
    feed = fills(file, 2, 7)
    if session.fused:  # by a library that has fused nodes
        agreement(named(session, feed), named(pom_export.inference_session(file, fused=False), feed))


def _silu(graph: Graph) -> str:
    a = graph.product("x")
    return graph.node("Mul", graph.node("Sigmoid", a), a)


def _one_used_elsewhere(graph: Graph) -> str:
    a = graph.product("x")
    s = graph.node("Sigmoid", a)
    return graph.node("Add", graph.node("Mul", s, a), graph.node("Tanh", s))


def _product_with_its_bias(graph: Graph) -> str:
    bias = graph.constant(np.arange(16, dtype=np.float32))
    name = graph.product("x")
    graph.nodes[-1].input.extend(["", "", bias])
    return name


def _erf(order: int) -> Callable[[Graph], str]:
    def make(graph: Graph) -> str:
        half, root, one = (graph.constant(np.array(number, np.float32)) for number in (0.5, 0.5**0.5, 1))
        x = graph.product("x")
        total = graph.node("Add", one, graph.node("Erf", graph.node("Mul", x, root)))
        if order == 0:
            return graph.node("Mul", graph.node("Mul", x, total), half)
        return graph.node("Mul", total, graph.node("Mul", half, x))

    return make


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (_silu, {}),
        (_one_used_elsewhere, {"Sigmoid": 1, "Mul": 1, "Tanh": 1, "Add": 1}),
        (_product_with_its_bias, {}),
        (_erf(0), {}),
        (_erf(1), {}),
    ],
    ids=["silu", "a sigmoid used elsewhere", "a bias of its own", "x * sum * half", "half * x * sum"],
)
def test_forms(graph: Graph, tmp_path: Path, make: Callable[[Graph], str], left: dict[str, int]) -> None:
    made = check(graph.save(tmp_path / "g.onnx", make(graph)))
    assert operators(made.model) == {"FusedLayers": 1, **left}


def _of_other_width(graph: Graph) -> str:
    return graph.product("x", K=15)


def _with_zero_points(graph: Graph) -> str:
    name = graph.product("x")
    graph.nodes[-1].input.append(graph.constant(np.full((16, 1), 8, np.uint8)))
    return name


def _of_large_blocks(graph: Graph) -> str:
    return graph.product("x", block_size=512)


def _of_computed_scales(graph: Graph) -> str:
    name = graph.product("x")
    product = graph.nodes.pop()
    graph.node("Abs", product.input[2])
    computed = graph.nodes[-1]
    computed.output[0] = product.input[2] = "computed"
    graph.nodes.append(product)
    return name


@pytest.mark.parametrize("make", [_of_other_width, _with_zero_points, _of_large_blocks, _of_computed_scales])
def test_other_products_stay(graph: Graph, tmp_path: Path, make: Callable[[Graph], str]) -> None:
    assert fused(graph.save(tmp_path / "g.onnx", make(graph))) is None


@pytest.mark.parametrize("shape", [("tokens", 16), (None, None, 16), (1, "batch", "tokens", 16)])
def test_values_of_other_or_unknown_sizes_stay(graph: Graph, tmp_path: Path, shape: tuple[object, ...]) -> None:
    assert fused(graph.save(tmp_path / "g.onnx", graph.product("x"), shape=shape)) is None


def test_a_function_under_a_standard_name_is_called(graph: Graph, tmp_path: Path) -> None:
    inner = helper.make_node("Neg", ["x"], ["y"])
    graph.functions.append(
        helper.make_function("com.microsoft", "Relu", ["x"], ["y"], [inner], [helper.make_opsetid("", 20)])
    )
    a = graph.node("Relu", graph.product("x"), domain="com.microsoft")
    made = check(graph.save(tmp_path / "g.onnx", a))
    assert operators(made.model) == {"FusedLayers": 1, "Relu": 1}
