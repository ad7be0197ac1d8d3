"""Products of small types: what a file asks for, what the engine's own list of layers says, and which targets take it.

All with real builds; the lists come from TensorRT for RTX, which writes them during a build without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import pom_export
from pom_export.engine.builder import build_engine
from pom_export.engine.product_types import UNLISTED, engine_products
from pom_export.engine.small_types import small_types
from pom_export.errors import EngineError, InputError
from pom_export.graph.passes.claim_least import ClaimLeastPass
from pom_export.graph.quantized.block_weights import FLOAT8, QuantizedWeight
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.scaled import write_scaled_product
from pom_export.graph.saving import save_model

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"
RTX = "tensorrt-rtx"
HALF = ir.DataType.FLOAT16
# In this model, qc_proj has two products of 32 rows, and ag_proj one of 64.
ROWS = 32

pytestmark = pytest.mark.usefixtures("tensorrt_rtx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal", dtype="float16")
    return path


def quantized(exported: Path, folder: Path, kind: str, block: int | None = None, keep: str = "none") -> Path:
    """Write a copy of a file whose products are of a type, with fitting scales."""
    model = ir.load(exported)
    for product in float_products(model, [HALF]):
        if keep in product.name:
            continue
        matrix = product.matrix()
        rows, scale = block or len(matrix), np.float32(0.02)
        scales = np.full((len(matrix) // rows, matrix.shape[1]), scale, np.float32)
        bits = 4 if kind == "int4" else 8
        most = (1 << (bits - 1)) - 1
        values = np.clip(np.rint(matrix / scale), -most, most).astype(np.int8)
        weight = QuantizedWeight((matrix / scale).astype(FLOAT8) if kind == "fp8" else values, scales, bits, rows)
        write_scaled_product(model, product, weight, None if kind == "int4" else 0.05, shared=True)
    ClaimLeastPass()(model)
    save_model(model, folder / "q.onnx")
    return folder / "q.onnx"


@pytest.mark.parametrize(
    ("kind", "block", "targets", "label"),
    [
        ("int8", None, ["sm75", "sm86", "sm120"], "int8"),
        ("fp8", None, ["sm89", "sm120"], "fp8"),
        ("int4", 8, ["sm86", "sm89", "sm120"], "int4 weights"),
    ],
)
def test_products_are_of_the_type_asked_for_around_the_plugin(
    exported: Path, tmp_path: Path, kind: str, block: int | None, targets: list[str], label: str
) -> None:
    info = build_engine(quantized(exported, tmp_path, kind, block), tmp_path / "e", backend=RTX, targets=targets)
    assert info.plugin_layers == info.aggregations == 1
    assert info.matrix_products == info.engine_products == {label: 3}
    assert info.not_as_asked == {}
    # The plugin between them computes in half precision.
    assert info.precisions["float16"] > info.precisions.get("float32", 0)


def test_weights_that_the_file_itself_rounds_are_seen(exported: Path, tmp_path: Path) -> None:
    """ModelOpt leaves weights in float, and puts Q and DQ behind them."""
    path = quantized(exported, tmp_path, "int8")
    model = onnx.load(path)
    for tensor in [each for each in model.graph.initializer if each.name.endswith(".int8")]:
        scale = next(node for node in model.graph.node if node.input[0] == tensor.name).input[1]
        zero = onnx.helper.make_tensor(
            f"{tensor.name}.zero", onnx.TensorProto.INT8, [tensor.dims[1]], [0] * tensor.dims[1]
        )
        numbers = (onnx.numpy_helper.to_array(tensor) * np.float16(0.02)).astype(np.float16)
        model.graph.initializer.extend([zero, onnx.numpy_helper.from_array(numbers, f"{tensor.name}.float")])
        inputs, made = [f"{tensor.name}.float", scale, zero.name], [tensor.name]
        model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", inputs, made, axis=1))
        model.graph.initializer.remove(tensor)
    onnx.save(model, path)
    info = build_engine(path, tmp_path / "e", backend=RTX, targets=["sm86"])
    assert info.matrix_products == info.engine_products == {"int8": 3}


def test_products_that_stay_in_float_are_counted_beside_the_others(exported: Path, tmp_path: Path) -> None:
    path = quantized(exported, tmp_path, "int8", keep="ag_proj")
    info = build_engine(path, tmp_path / "e", backend=RTX, targets=["sm86"], use_plugin=False)
    assert info.matrix_products == info.engine_products == {"int8": 2, "float16": 1}


def test_a_product_that_is_not_of_the_type_asked_for_is_said(exported: Path, tmp_path: Path) -> None:
    """TensorRT for RTX restores int4 weights with one block of rows in memory, before the product."""
    path = quantized(exported, tmp_path, "int4", ROWS)
    said: list[str] = []
    info = build_engine(path, tmp_path / "e", backend=RTX, targets=["sm120"], progress=said.append)
    assert info.matrix_products == {"int4 weights": 3}
    assert info.engine_products == {"float16": 2, "int4 weights": 1}
    lost = "int4 weights asked for, float16 got"
    assert info.not_as_asked == {"qc_proj/MatMul.0": lost, "qc_proj/MatMul.1": lost}
    assert [each for each in said if each.startswith("2 products are not in the type asked for, such as qc_proj/")]


@pytest.mark.parametrize(("kind", "block", "lacking"), [("fp8", None, "sm86"), ("int4", 8, "sm75")])
def test_a_target_that_lacks_the_type_is_refused_before_the_build(
    exported: Path, tmp_path: Path, kind: str, block: int | None, lacking: str
) -> None:
    path = quantized(exported, tmp_path, kind, block)
    said: list[str] = []
    with pytest.raises(InputError, match=f"products in {kind}, which needs sm.* names {lacking}. Build for sm"):
        build_engine(path, tmp_path / "e", backend=RTX, targets=[lacking, "sm120"], progress=said.append)
    assert said == []
    assert [each.name for each in tmp_path.iterdir()] == ["q.onnx"]
    # TensorRT would refuse it too, at the end of the build.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pom_export.engine.builder.check_targets", lambda *_: None)
        with pytest.raises(EngineError, match="cannot build"):
            build_engine(path, tmp_path / "e", backend=RTX, targets=[lacking])


def test_default_targets_are_those_that_have_the_type(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pom_export.engine.targets.gpu_present", lambda: False)
    said: list[str] = []
    info = build_engine(quantized(exported, tmp_path, "fp8"), tmp_path / "e", backend=RTX, progress=said.append)
    assert info.targets == ["sm89", "sm120"]
    assert "the model has products in fp8: building for sm89, sm120 alone" in said


def test_small_types_are_found_in_constants_nodes_and_functions(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.Eight(x) }
        <domain: "f", opset_import: ["" : 21]> Eight (x) => (y) { s = Cast <to = 17> (x) y = Cast <to = 1> (s) }"""
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert small_types(tmp_path / "m.onnx") == ["fp8"]
    four = onnx.helper.make_tensor("four", onnx.TensorProto.INT4, [2], [1, 2])
    model.graph.initializer.append(four)
    del model.functions[0].node[:]
    onnx.save(model, tmp_path / "m.onnx")
    assert small_types(tmp_path / "m.onnx") == ["int4"]


def test_a_product_that_the_list_does_not_name_is_not_taken_for_one_of_its_type() -> None:
    line = (
        "Name: a, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,8], Datatype: Int8, Format: (Linear) r }], "
        "Constants: [ { Name: w, Dimensions: [8,8], Datatype: Int8, Format: (Linear) r }], Outputs: [], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: one]"
    )
    asked = {"[ONNX Layer: one]": "int8", "[ONNX Layer: two]": "int8", "[ONNX Layer: on]": "float16"}
    found = engine_products(asked, [f"Layers:\n{line}\n"])
    assert found is not None
    assert found.counts == {"int8": 1, UNLISTED: 2}
    assert found.otherwise == {"two": "int8 asked for, not listed got"}
    assert engine_products(asked, []) is None
    assert engine_products(asked, ["Layers:\n[reshape] another form\n"]) is None
