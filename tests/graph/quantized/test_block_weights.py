"""Integers in blocks, as ONNX Runtime reads them: against float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from pom_export.errors import InputError
from pom_export.graph.quantized.block_weights import LARGEST, QuantizedWeight, pack_blocks, unpack_blocks
from pom_export.graph.quantized.operators import is_quantized
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.reading import BLOCKS, FLOAT32, TENSOR, dequantize, quantized_products
from pom_export.graph.quantized.writing import (
    FLOAT_ACTIVATIONS,
    INTEGER_ACTIVATIONS,
    write_block_product,
    write_dynamic_product,
)
from pom_export.graph.saving import save_model
from pom_export.runtime.session import inference_session

SHAPES = [(32, 5, 32), (48, 7, 32), (70, 3, 16), (128, 16, 128), (200, 9, 64)]


def drawn_weight(rows: int, columns: int, block: int, bits: int) -> QuantizedWeight:
    random = np.random.default_rng(rows + bits)
    values = random.integers(-LARGEST[bits] - 1, LARGEST[bits], (rows, columns), endpoint=True).astype(np.int8)
    signs = random.choice((-1, 1), (-(-rows // block), columns))
    scales = (random.uniform(0.01, 0.1, signs.shape) * signs).astype(np.float32)
    return QuantizedWeight(values, scales, bits, block)


def product_model(path: Path, matrix: npt.NDArray[np.float32], *, tied: bool = False) -> ir.Model:
    """Return a graph of one product, x @ W; tied: the matrix is that of an embedding, transposed."""
    rows, columns = matrix.shape
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", "tokens", rows])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", "tokens", columns])
    nodes = [helper.make_node("MatMul", ["x", "turned" if tied else "w"], ["y"], "head/MatMul")]
    inputs, outputs = [x], [y]
    if tied:
        nodes = [
            helper.make_node("Gather", ["w", "ids"], ["e"], "embedding/Gather"),
            helper.make_node("Transpose", ["w"], ["turned"], "Transpose"),
            *nodes,
        ]
        inputs.append(helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "tokens"]))
        outputs.append(helper.make_tensor_value_info("e", onnx.TensorProto.FLOAT, ["batch", "tokens", rows]))
    weight = numpy_helper.from_array(np.ascontiguousarray(matrix.T if tied else matrix), "w")
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return ir.load(path)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "block"), SHAPES)
def test_packing_keeps_every_integer(rows: int, columns: int, block: int, bits: int) -> None:
    weight = drawn_weight(rows, columns, block, bits)
    packed = pack_blocks(weight)
    assert packed.shape == (columns, -(-rows // block), block * bits // 8)
    back = unpack_blocks(packed, weight.scales.T, rows, bits, block)
    np.testing.assert_array_equal(back.values, weight.values)
    np.testing.assert_array_equal(back.scales, weight.scales)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "columns", "block"), SHAPES)
def test_onnxruntime_multiplies_by_the_same_numbers(
    rows: int, columns: int, block: int, bits: int, tmp_path: Path
) -> None:
    weight = drawn_weight(rows, columns, block, bits)
    model = product_model(tmp_path / "m.onnx", weight.dequantized())
    write_block_product(model, float_products(model)[0], weight, FLOAT_ACTIVATIONS)
    save_model(model, tmp_path / "q.onnx")
    session = inference_session(tmp_path / "q.onnx")
    for tokens in (1, 13):
        x = np.random.default_rng(0).standard_normal((2, tokens, rows)).astype(np.float32)
        expected = x.astype(np.float64) @ weight.dequantized().astype(np.float64)
        found = session.run(None, {"x": x})[0]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("accuracy", [FLOAT_ACTIVATIONS, INTEGER_ACTIVATIONS])
def test_products_are_read_back(accuracy: int, tmp_path: Path) -> None:
    weight = drawn_weight(70, 6, 32, 4)
    model = product_model(tmp_path / "m.onnx", weight.dequantized())
    write_block_product(model, float_products(model)[0], weight, accuracy)
    save_model(model, tmp_path / "q.onnx")
    model = ir.load(tmp_path / "q.onnx")
    assert is_quantized(model)
    (found,) = quantized_products(model)
    assert (found.name, found.initializer, found.module) == ("head/MatMul", "w", "head")
    assert found.activations == (FLOAT32 if accuracy == FLOAT_ACTIVATIONS else BLOCKS)
    np.testing.assert_array_equal(found.weight.dequantized(), weight.dequantized())


def test_a_dynamic_product_is_that_of_integers(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 9)).astype(np.float32)
    scales = np.full((1, 9), 0.05, np.float32)
    weight = QuantizedWeight(np.clip(np.rint(matrix / scales), -63, 63).astype(np.int8), scales, 8, 64)
    model = product_model(tmp_path / "m.onnx", matrix)
    write_dynamic_product(model, float_products(model)[0], weight)
    save_model(model, tmp_path / "q.onnx")
    (found,) = quantized_products(ir.load(tmp_path / "q.onnx"))
    assert (found.name, found.activations) == ("head/MatMul", TENSOR)
    x = np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32)
    # As ONNX defines DynamicQuantizeLinear.
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((high - low) / 255)
    zero = np.clip(np.rint(-low / step), 0, 255)
    rounded = (np.clip(np.rint(x / step) + zero, 0, 255) - zero) * np.float64(step)
    expected = rounded @ weight.dequantized().astype(np.float64)
    result = inference_session(tmp_path / "q.onnx").run(None, {"x": x})[0]
    assert np.abs(result - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_dequantized_graph_has_the_weights_in_float32(tmp_path: Path) -> None:
    weight = drawn_weight(70, 6, 32, 4)
    model = product_model(tmp_path / "m.onnx", weight.dequantized())
    write_block_product(model, float_products(model)[0], weight, INTEGER_ACTIVATIONS)
    assert [product.name for product in dequantize(model)] == ["head/MatMul"]
    save_model(model, tmp_path / "d.onnx")
    (product,) = float_products(ir.load(tmp_path / "d.onnx"))
    assert product.name == "head/MatMul"
    np.testing.assert_array_equal(product.matrix(), weight.dequantized())
    assert "com.microsoft" not in ir.load(tmp_path / "d.onnx").opset_imports


def test_a_tied_head_leaves_the_embedding_as_it_is(tmp_path: Path) -> None:
    weight = drawn_weight(48, 6, 16, 8)
    model = product_model(tmp_path / "m.onnx", weight.dequantized(), tied=True)
    (product,) = float_products(model)
    assert product.transposed
    assert product.shape == (48, 6)
    write_block_product(model, product, weight, FLOAT_ACTIVATIONS)
    save_model(model, tmp_path / "q.onnx")
    assert [node.op_type for node in ir.load(tmp_path / "q.onnx").graph] == ["Gather", "MatMulNBits"]
    feed = {"x": np.ones((1, 2, 48), np.float32), "ids": np.array([[5, 0]])}
    y, embedded = inference_session(tmp_path / "q.onnx").run(None, feed)
    np.testing.assert_array_equal(embedded[0, 0], weight.dequantized()[:, 5])
    np.testing.assert_allclose(y[0, 0], weight.dequantized().astype(np.float64).sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda packed, scales: (packed, np.where(np.arange(scales.size) == 1, np.nan, scales)), "no finite numbers"),
        (lambda packed, scales: (packed, scales[:-1]), "scales, where"),
        (lambda packed, scales: (packed[:, :1], scales), "integers of shape"),
    ],
)
def test_damaged_weights_are_named(spoil: object, message: str, tmp_path: Path) -> None:
    assert callable(spoil)
    weight = drawn_weight(70, 6, 32, 4)
    model = product_model(tmp_path / "m.onnx", weight.dequantized())
    write_block_product(model, float_products(model)[0], weight, FLOAT_ACTIVATIONS)
    packed, scales = spoil(pack_blocks(weight), weight.scales.T.ravel())
    for name, array in (("w.int4", packed), ("w.scales", scales.astype(np.float32))):
        model.graph.initializers[name].const_value = ir.tensor(np.ascontiguousarray(array))
    with pytest.raises(InputError, match=message):
        quantized_products(model)
