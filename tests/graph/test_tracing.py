"""Exported graphs: names, shapes, and what must or must not be in them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.graph.opsets import OPSETS
from pom_export.graph.options import GraphOptions
from pom_export.graph.programs import program_of
from pom_export.graph.saving import save_model
from pom_export.graph.schema import attributes, register_schema
from pom_export.graph.tracing import export_graph
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.runtime.session import inference_session

B, N, M = "batch", "tokens", "context_tokens"
INTERFACES = {
    ("none", False): {"x": (B, N, 8)},
    ("causal", False): {"x": (B, N, 8)},
    ("padding", False): {"x": (B, N, 8), "mask": (B, N)},
    ("full", False): {"x": (B, N, 8), "mask": (B, N, N)},
    ("none", True): {"x": (B, N, 8), "context": (B, M, 8)},
    ("padding", True): {"x": (B, N, 8), "context": (B, M, 8), "mask": (B, M)},
    ("full", True): {"x": (B, N, 8), "context": (B, M, 8), "mask": (B, N, M)},
}


FEW = [("causal", False), ("padding", True)]


def export(tmp_path: Path, options: GraphOptions, opset: int = 20) -> Path:
    path = tmp_path / "m.onnx"
    program = program_of(PolynomialMixer(8, 3, 2, n_sel_heads=4), options)
    save_model(export_graph(program, opset, {"dtype": "float32"}), path)
    return path


@pytest.mark.parametrize(
    ("mask", "cross"),
    [pytest.param(*case, marks=[] if case in FEW else [pytest.mark.slow]) for case in INTERFACES],
)
def test_the_interface_is_the_documented_one(mask: str, cross: bool, tmp_path: Path) -> None:
    exported = read_model(export(tmp_path, GraphOptions(mask, cross)))
    assert {spec.name: spec.axes for spec in exported.inputs} == INTERFACES[mask, cross]
    assert {spec.name: spec.axes for spec in exported.outputs} == {"y": (B, N, 8)}
    assert len(exported.aggregations) == 1
    assert exported.properties["mask"] == mask


def test_sizes_can_be_pinned(tmp_path: Path) -> None:
    exported = read_model(export(tmp_path, GraphOptions("padding", static=(1, 1))))
    assert [spec.axes for spec in exported.inputs] == [(1, 1, 8), (1, 1)]


def test_nodes_are_as_the_contract_says(tmp_path: Path) -> None:
    model = onnx.load(export(tmp_path, GraphOptions("causal")))
    (node,) = (node for node in model.graph.node if node.domain == contract.DOMAIN)
    assert {attribute.name for attribute in node.attribute} == set(contract.GATED_ATTRIBUTES)
    assert all(node.input)
    assert [(f.domain, f.name) for f in model.functions] == [(contract.DOMAIN, contract.GATED_OP_NAME)]
    operators = {n.op_type for n in [*model.graph.node, *model.functions[0].node]}
    assert not operators & {"Loop", "Scan", "Einsum", "Trilu"}


def test_names_come_from_the_modules_and_nothing_of_the_machine_is_left(tmp_path: Path) -> None:
    config = LanguageModelConfig(20, 2, 3, 16, MixerConfig(8, 2, 2))
    model = LanguageModel(config)
    for i, parameter in enumerate(model.parameters()):
        torch.nn.init.constant_(parameter, 1 + i)  # equal weights would be stored once
    save_model(export_graph(program_of(model, GraphOptions()), 20, {}), tmp_path / "m.onnx")
    exported = read_model(tmp_path / "m.onnx")
    assert exported.aggregations == [f"blocks.{i}.mixer/GatedPolynomialAggregation" for i in range(2)]
    weights = {tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert {"embedding.weight", "blocks.1.mixer.po_coeff", "blocks.1.mixer.qc_proj.weight_transposed.0"} <= weights
    content = (tmp_path / "m.onnx").read_bytes()
    assert b".py" not in content
    assert b"pkg.torch" not in content


def newest_opset() -> int:
    """Return the newest opset that an export may use and that this ONNX Runtime knows: 1.22 knows 22."""
    return min(OPSETS.stop - 1, max(op.since_version for op in get_all_operator_schema() if op.domain == ""))


@pytest.mark.parametrize("opset", [OPSETS.start, newest_opset()])
def test_the_oldest_and_the_newest_opset_run(opset: int, tmp_path: Path) -> None:
    session = inference_session(export(tmp_path, GraphOptions("causal"), opset), kernels=False)
    (y,) = session.run(None, {"x": torch.ones(2, 5, 8).numpy()})
    assert y.shape == (2, 5, 8)


@pytest.mark.parametrize("opset", [0, OPSETS.start - 1, OPSETS.stop])
def test_other_opsets_are_refused(opset: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"opset {opset}"):
        export(tmp_path, GraphOptions(), opset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GraphOptions("triangular"), "unknown mask 'triangular'"),
        (GraphOptions("causal", cross=True), "`cross`"),
        (GraphOptions(static=(0, 4)), "0x4"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: GraphOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        program_of(PolynomialMixer(8, 2, 2), options)


@pytest.mark.parametrize("options", [GraphOptions("padding"), GraphOptions("none"), GraphOptions(cross=True)])
def test_a_language_model_is_causal(options: GraphOptions) -> None:
    model = LanguageModel(LanguageModelConfig(20, 1, 3, 16, MixerConfig(8, 2, 2)))
    with pytest.raises(InputError, match="causal"):
        program_of(model, options)


@pytest.mark.parametrize(("mode", "tokens"), [("mean", 1), ("causal", 7), ("features", 7)])
def test_shapes_and_types_are_inferred_from_the_schema(mode: str, tokens: int) -> None:
    register_schema()
    half = onnx.TensorProto.FLOAT16
    node = onnx.helper.make_node(contract.OP_NAME, ["x", "c"], ["h"], domain=contract.DOMAIN, **attributes(mode))
    graph = onnx.helper.make_graph(
        [node, onnx.helper.make_node("Identity", ["h"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info(*i) for i in (("x", half, [2, 7, 8]), ("c", half, [8, 3]))],
        [onnx.helper.make_tensor_value_info("y", half, None)],
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    inferred = onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=opsets), strict_mode=True)
    output = inferred.graph.output[0].type.tensor_type
    assert output.elem_type == half
    assert [dim.dim_value for dim in output.shape.dim] == [2, tokens, 8]
