"""A file in standard operators computes what the original does, keeps what belongs to it, and is read by everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph import inlining, saving
from pom_export.graph.exported_model import read_model
from pom_export.mixer import PolynomialMixer
from tests.exports import Edit, into_function, into_loop, without_types

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "m.onnx"
    pom_export.export(GOLDEN / "v2_heads", path, mask="causal", stateful=True, samples=2)
    return path


def check_is_standard(path: Path) -> onnx.ModelProto:
    """Check that a file has nothing but standard operators, and return it."""
    model = onnx.load(path)
    assert not model.functions
    assert [imported.domain for imported in model.opset_import] == [""]
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            assert node.domain == ""
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return model


def test_an_inlined_file_keeps_everything_but_the_op(exported: Path, tmp_path: Path) -> None:
    result = pom_export.inline(exported, tmp_path / "in.onnx")

    assert (result.inlined, result.checked, result.notes) == (1, ["onnxruntime standard operators"], [])
    assert len(result.cases) == 8  # two of the parity data, and six drawn ones
    proto, original = check_is_standard(tmp_path / "in.onnx"), onnx.load(exported)
    assert proto.ir_version == original.ir_version == 9
    before = {prop.key: prop.value for prop in original.metadata_props}
    assert {prop.key: prop.value for prop in proto.metadata_props} == {**before, "pom_export.inlined": "1"}
    assert proto.graph.input == original.graph.input
    assert proto.graph.output == original.graph.output
    named = [node.name for node in proto.graph.node if "Aggregation/" in node.name]
    assert len(set(named)) == len(named) > 10
    types = {value.name for value in (*proto.graph.value_info, *proto.graph.output)}
    assert {output for node in proto.graph.node for output in node.output} <= types


def test_everything_reads_an_inlined_file(exported: Path, tmp_path: Path) -> None:
    model = tmp_path / "in.onnx"
    pom_export.inline(exported, model)

    found = pom_export.inspect(model)
    assert isinstance(found, pom_export.ModelInspection)
    assert (found.aggregations, found.inlined, found.state, found.dtype) == (0, 1, "causal", "float32")
    for reference in ({}, {"checkpoint": GOLDEN / "v2_heads"}):
        report = pom_export.verify(model, **reference)
        assert report
        assert {(each.backend, each.path) for each in report.comparisons} == {("onnxruntime", "standard operators")}
        assert any("the file is inlined" in note for note in report.notes)


def test_fusing_makes_the_op_of_an_inlined_file_again(tmp_path: Path) -> None:
    original, inlined, fused = (tmp_path / f"{name}.onnx" for name in ("m", "in", "fused"))
    pom_export.export(GOLDEN / "v2_heads", original, mask="causal")
    pom_export.inline(original, inlined)
    assert pom_export.fuse(inlined, fused).fused == 1
    model = read_model(fused)
    assert (len(model.aggregations), model.inlined) == (1, 0)


@pytest.mark.slow
def test_a_fault_in_an_inlined_file_is_named(tmp_path: Path) -> None:
    pom_export.export(GOLDEN / "v2_heads", tmp_path / "in.onnx", mask="causal", inline=True)
    report = pom_export.debug(tmp_path / "in.onnx", checkpoint=GOLDEN / "v2_heads")
    assert report
    assert not report.notes
    model = onnx.load(tmp_path / "in.onnx")
    (relu,) = (node for node in model.graph.node if node.op_type == "LeakyRelu")
    relu.attribute[0].f = 0.2
    onnx.save(model, tmp_path / "in.onnx")
    report = pom_export.debug(tmp_path / "in.onnx", checkpoint=GOLDEN / "v2_heads")
    assert not report
    assert "alpha is 0.2, not 0.01" in report.cause


def test_a_stream_of_an_inlined_file_needs_no_library(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pom_export.inline(exported, tmp_path / "in.onnx")
    x = np.random.default_rng(0).standard_normal((1, 5, read_model(exported).inputs[0].axes[2])).astype(np.float32)
    whole = pom_export.StreamingSession(exported).prefill(x)

    monkeypatch.setenv("POM_CUSTOM_OPS_LIBRARY", os.devnull)
    stream = pom_export.StreamingSession(tmp_path / "in.onnx")
    parts = [stream.prefill(part).copy() for part in (x[:, :2], x[:, 2:3], x[:, 3:])]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, rtol=1e-5, atol=1e-5)
    with pytest.raises(pom_export.PomExportError, match="POM_CUSTOM_OPS_LIBRARY"):
        pom_export.StreamingSession(exported)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        pytest.param("v2_groups_bias", {"mask": "padding"}),
        pytest.param("rope1d", {"mask": "causal", "opset": 18}, marks=pytest.mark.slow),
        pytest.param("v2_heads", {"mask": "full", "dtype": "float16", "opset": 23}, marks=pytest.mark.slow),
        pytest.param("v1_degree3", {"mask": "causal", "dtype": "bfloat16"}, marks=pytest.mark.slow),
        pytest.param("gpt_pom", {"stateful": True, "dtype": "float16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_kind_is_exported_inline_as_it_is_inlined(case: str, options: dict[str, Any], tmp_path: Path) -> None:
    given, original, inlined = (tmp_path / f"{name}.onnx" for name in ("given", "original", "inlined"))
    result = pom_export.export(GOLDEN / case, given, inline=True, **options)
    assert result.aggregations == 0
    assert result.inlined > 0
    assert all(path.endswith("standard operators") for path in result.checked)
    assert result.checked

    pom_export.export(GOLDEN / case, original, **options)
    found = pom_export.inline(original, inlined)
    assert found.checked
    check_is_standard(inlined)
    assert inlined.read_bytes() == given.read_bytes()
    assert pom_export.verify(inlined, checkpoint=GOLDEN / case)


def test_onnx_reference_gives_the_originals_numbers(exported: Path, tmp_path: Path) -> None:
    pom_export.inline(exported, tmp_path / "in.onnx")
    random, sizes = np.random.default_rng(3), {"batch": 2, "tokens": 4}
    feed: dict[str, Any] = {}
    for spec in read_model(exported).inputs:
        shape = [axis if isinstance(axis, int) else sizes[axis] for axis in spec.axes]
        feed[spec.name] = random.integers(0, 9, shape).astype(spec.dtype)
    expected = pom_export.inference_session(exported).run(None, feed)
    made: Any = ReferenceEvaluator(str(tmp_path / "in.onnx")).run(None, feed)
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


class Sum(nn.Module):
    """A mixer whose result is scaled along the rows, under dimension names of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = PolynomialMixer(dim=8, degree=2, expand=2)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return nn.functional.gelu(self.mixer(x)) * scale[:, None, None]


@pytest.mark.slow
def test_a_module_of_ones_own_is_compared_at_several_sizes(tmp_path: Path) -> None:
    shapes = {"x": {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", max=40)}, "scale": {0: "rows"}}
    shapes["scale"] = {0: shapes["x"][0]}
    inputs = (torch.randn(3, 7, 8), torch.rand(3))
    pom_export.export(Sum(), tmp_path / "m.onnx", example_inputs=inputs, dynamic_shapes=shapes, samples=1)
    result = pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx")
    assert result.cases == [
        "example inputs (recorded)", "length 16, rows 2", "length 17, rows 3", "length 1, rows 1", "length 40, rows 2"
    ]  # fmt: skip
    assert not any(node.op_type == "Gelu" for node in check_is_standard(tmp_path / "in.onnx").graph.node)
    assert pom_export.verify(tmp_path / "in.onnx")


@pytest.mark.parametrize(
    "edit",
    [pytest.param(into_function("other", "Whole"), marks=pytest.mark.slow), without_types, into_loop],
    ids=["f", "if", "loop"],
)
def test_calls_in_functions_branches_and_loops_are_inlined(edit: Edit, tmp_path: Path) -> None:
    pom_export.export(GOLDEN / "v2_no_heads", tmp_path / "m.onnx", mask="causal")
    model = onnx.load(tmp_path / "m.onnx")
    edit(model)
    onnx.save(model, tmp_path / "m.onnx")
    result = pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx")
    check_is_standard(tmp_path / "in.onnx")
    assert result.checked == ["onnxruntime standard operators"]
    assert len(result.cases) > 3


@pytest.mark.slow
def test_large_weights_go_beside_the_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 64)
    pom_export.export(GOLDEN / "v2_no_heads", tmp_path / "m.onnx", mask="causal")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    pom_export.inline(tmp_path / "m.onnx", folder / "in.onnx")
    (weights,) = folder.glob("in.onnx.*.data")
    (of_original,) = tmp_path.glob("m.onnx.*.data")
    of_original.unlink()
    assert pom_export.verify(folder / "in.onnx", checkpoint=GOLDEN / "v2_no_heads")
    pom_export.export(GOLDEN / "v2_no_heads", folder / "in.onnx", mask="none", inline=True)
    assert weights.exists()  # the weights are the same
    monkeypatch.setattr(saving, "EXTERNAL_DATA_BYTES", 1 << 30)
    pom_export.export(GOLDEN / "v2_no_heads", folder / "in.onnx", mask="none", inline=True)
    assert not weights.exists()


def test_small_weights_beside_the_file_go_into_the_new_one(exported: Path, tmp_path: Path) -> None:
    onnx.save(onnx.load(exported), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    result = pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx")
    (tmp_path / "w.bin").unlink()
    assert pom_export.verify(tmp_path / "in.onnx", checkpoint=GOLDEN / "v2_heads")
    assert result.bytes == (tmp_path / "in.onnx").stat().st_size


def test_a_wrong_rewriting_is_found_and_leaves_no_file(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spoil(ir.passes.InPlacePass):
        """Add one per cent to a weight, as a faulty pass might."""

        def call(self, model: ir.Model) -> ir.passes.PassResult:
            value = max(model.graph.initializers.values(), key=lambda each: each.const_value.size)
            value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
            return ir.passes.PassResult(model, modified=True)

    monkeypatch.setattr(inlining, "SpellOutPass", Spoil)
    with pytest.raises(ParityError, match=r"of onnxruntime \(standard operators\) differs from .*m\.onnx by"):
        pom_export.inline(exported, tmp_path / "in.onnx")
    assert list(tmp_path.iterdir()) == []


def lose_function(model: onnx.ModelProto) -> None:
    model.ClearField("functions")


def change_function(model: onnx.ModelProto) -> None:
    for node in model.functions[0].node:
        for attribute in node.attribute:
            if node.op_type == "LeakyRelu":
                attribute.f = 0.5


def foreign_node(model: onnx.ModelProto) -> None:
    node = helper.make_node("FusedGelu", [model.graph.input[0].name], ["unused"], domain="com.example")
    model.graph.node.insert(0, node)
    model.opset_import.append(helper.make_opsetid("com.example", 1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lose_function, "has lost the function of"),
        (change_function, "do not match: on small inputs"),
        (foreign_node, "FusedGelu of the domain com.example is not a standard operator"),
    ],
)
def test_what_cannot_be_inlined_is_named(
    edit: Callable[[onnx.ModelProto], None], message: str, exported: Path, tmp_path: Path
) -> None:
    model = onnx.load(exported)
    edit(model)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match=message):
        pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx")
    assert not (tmp_path / "in.onnx").exists()


def test_an_inlined_file_is_not_inlined_again(exported: Path, tmp_path: Path) -> None:
    pom_export.inline(exported, tmp_path / "in.onnx")
    with pytest.raises(InputError, match="there is nothing to inline"):
        pom_export.inline(tmp_path / "in.onnx", tmp_path / "again.onnx")


def test_inputs_that_the_model_does_not_take_are_noted(tmp_path: Path) -> None:
    """A file without our dimension names, in which two dimensions must be equal."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [f"{name}_rows", 2]) for name in "xy")
    out = helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    body = [helper.make_node("Add", ["a", "b"], ["c"])]
    function = helper.make_function("mine", "Sum", ["a", "b"], ["c"], body, [helper.make_opsetid("", 20)])
    nodes = [
        helper.make_node("Reshape", ["y", "shape"], ["z"]),
        helper.make_node("Sum", ["x", "z"], ["out"], domain="mine"),
    ]
    shape = numpy_helper.from_array(np.array([3, 2]), "shape")
    out.type.tensor_type.shape.dim.add(dim_param="n")
    out.type.tensor_type.shape.dim.add(dim_value=2)
    graph = helper.make_graph(nodes, "graph", [x, y], [out], [shape])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9), tmp_path / "m.onnx")

    result = pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx")
    assert result.cases == ["x_rows 3, y_rows 3"]
    assert len(result.notes) == 2
    assert all(note.startswith("not compared on x_rows") for note in result.notes)
    given = {"x": np.ones((1, 2), np.float32), "y": np.ones((3, 2), np.float32)}
    assert pom_export.inline(tmp_path / "m.onnx", tmp_path / "in.onnx", inputs=given).cases[-1] == "given"
