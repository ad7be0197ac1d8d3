"""Functions of standard ops in exported models: present, valid, linear in the tokens, one per variant."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.nodes import aggregation_nodes, gated_nodes, is_aggregation, op_of
from pom_export.graph.options import GraphOptions
from pom_export.graph.own_program import module_program, named_examples
from pom_export.graph.passes.attach_functions import AttachFunctionsPass
from pom_export.graph.programs import program_of
from pom_export.graph.saving import save_model
from pom_export.graph.schema import attributes
from pom_export.graph.tracing import export_graph
from pom_export.mixer import PolynomialMixer
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.session import inference_session


class TwoMixers(nn.Module):
    """Two mixers that need different functions, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = PolynomialMixer(dim=8, degree=2, expand=2)
        self.second = PolynomialMixer(dim=8, degree=3, expand=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x, mask="causal")
        x = x + self.second(x)
        return x + self.first(x, mask="causal")


@pytest.fixture(scope="module")
def two_mixers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("two") / "m.onnx"
    save_model(
        export_graph(module_program(TwoMixers(), named_examples(TwoMixers(), torch.ones(2, 5, 8))), 20, {}), path
    )
    return path


def test_each_variant_gets_a_function_with_a_name_of_its_own(two_mixers: Path) -> None:
    model = onnx.load(two_mixers)

    first, second, *_ = contract.GATED_OP_NAMES
    assert [node.op_type for node in model.graph.node if is_aggregation(node)] == [first, second, first]
    assert [(function.domain, function.name) for function in model.functions] == [("pom", first), ("pom", second)]
    assert not any(each.overload for each in (*model.functions, *model.graph.node))


@pytest.mark.parametrize("kernels", [False, True], ids=["functions", "kernels"])
def test_every_variant_runs(two_mixers: Path, kernels: bool) -> None:
    x = torch.randn(3, 9, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = TwoMixers().double()(x.double()).numpy()

    (y,) = inference_session(two_mixers, kernels=kernels).run(None, {"x": x.numpy()})

    found = difference(y, expected, MODELS["float32"])
    assert found, found


@pytest.mark.parametrize("mask", ["causal", "padding"])
def test_no_value_is_tokens_by_tokens(mask: str, tmp_path: Path) -> None:
    tokens = 37  # a size that no other dimension has
    program = program_of(PolynomialMixer(dim=8, degree=3, expand=2), GraphOptions(mask, static=(2, tokens)))
    save_model(export_graph(program, 20, {}), tmp_path / "m.onnx")
    inlined = onnx.inliner.inline_local_functions(onnx.load(tmp_path / "m.onnx"))
    assert not any(node.domain for node in inlined.graph.node)

    inferred = onnx.shape_inference.infer_shapes(inlined, strict_mode=True, data_prop=True).graph

    known = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in inferred.value_info}
    computed = {name for node in inferred.node for name in node.output} - {value.name for value in inferred.output}
    assert computed <= known.keys()
    constants = [list(tensor.dims) for tensor in inferred.initializer]
    constants += [list(a.t.dims) for node in inferred.node for a in node.attribute if a.HasField("t")]
    assert all(shape.count(tokens) <= 1 for shape in [*known.values(), *constants])
    assert [2, tokens, 16] in known.values()


@pytest.mark.parametrize("mask", ["causal", "full"])
def test_no_node_leaves_an_input_empty(mask: str, tmp_path: Path) -> None:
    # TensorRT's parser takes an empty name for an input that exists.
    program = program_of(PolynomialMixer(dim=8, degree=3, expand=2), GraphOptions(mask))
    save_model(export_graph(program, 20, {}), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")

    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]

    assert len(nodes) > len(model.graph.node)
    assert all(name for node in nodes for name in node.input)


def make_graph(coefficient_shape: ir.Shape | None, x_type: ir.DataType | None) -> ir.Model:
    x = ir.Value(name="x", type=None if x_type is None else ir.TensorType(x_type), shape=ir.Shape([2, 5, 8]))
    coefficients = ir.Value(name="c", type=ir.TensorType(ir.DataType.FLOAT), shape=coefficient_shape)
    written = [ir.convenience.convert_attribute(name, value) for name, value in attributes("mean").items()]
    node = ir.Node(contract.DOMAIN, contract.OP_NAME, [x, coefficients], written, name="mixer/Op")
    graph = ir.Graph([x, coefficients], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    return ir.Model(graph, ir_version=10)


def test_attaches_the_function_to_a_graph_without_torch() -> None:
    model = make_graph(ir.Shape([8, 3]), ir.DataType.FLOAT)
    assert len(aggregation_nodes(model)) == 1

    result = AttachFunctionsPass()(model)

    assert result.modified
    assert list(model.functions) == [(contract.DOMAIN, contract.OP_NAME, "")]
    assert model.opset_imports[contract.DOMAIN] == contract.OP_VERSION


@pytest.mark.parametrize(
    ("shape", "x_type"),
    [(None, ir.DataType.FLOAT), (ir.Shape([8, "degree"]), ir.DataType.FLOAT), (ir.Shape([8, 3]), None)],
)
def test_names_the_node_whose_variant_is_unknown(shape: ir.Shape | None, x_type: ir.DataType | None) -> None:
    with pytest.raises(InputError, match="mixer/Op"):
        AttachFunctionsPass()(make_graph(shape, x_type))


def make_variants(count: int) -> ir.Model:
    """Return a graph of nodes that differ in epsilon, and whose functions therefore differ."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 5, 8]))
    c = ir.Value(name="c", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([8, 3]))
    mask = ir.Value(name="mask", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([2, 5]))
    nodes = []
    for index in range(count):
        values = attributes("mean", index / 8)
        written = [ir.convenience.convert_attribute(name, value) for name, value in values.items()]
        nodes.append(ir.Node(contract.DOMAIN, contract.OP_NAME, [x, c, mask], written, name=f"mixers.{index}/Op"))
    outputs = [node.outputs[0] for node in nodes]
    return ir.Model(ir.Graph([x, c, mask], outputs, nodes=nodes, opset_imports={"": 20}, name="g"), ir_version=9)


def test_the_names_serve_as_many_variants_as_there_are_names() -> None:
    model = make_variants(contract.NAME_COUNT)
    AttachFunctionsPass()(model)
    assert [node.op_type for node in aggregation_nodes(model)] == list(contract.OP_NAMES)
    assert {op_of(node) for node in model.graph} == {contract.OP_NAME}
    assert gated_nodes(model) == []


def test_more_variants_than_names_are_refused() -> None:
    count = contract.NAME_COUNT + 1
    with pytest.raises(InputError, match=f"{count} kinds of aggregation.*mixers.{contract.NAME_COUNT} is the first"):
        AttachFunctionsPass()(make_variants(count))


def test_leaves_a_graph_without_aggregations_alone() -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="g")

    result = AttachFunctionsPass()(ir.Model(graph, ir_version=10))

    assert not result.modified
    assert not result.model.functions
    assert list(result.model.opset_imports) == [""]
