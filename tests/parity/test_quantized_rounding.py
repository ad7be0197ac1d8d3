"""ONNX Runtime rounds activations as we say it does, whatever the sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from pom_export.graph.quantized.block_weights import LARGEST, QuantizedWeight
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.reading import BLOCKS, TENSOR, QuantizedProduct, quantized_products
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS, write_block_product, write_dynamic_product
from pom_export.parity.quantized.rounding import expected_product, in_blocks, in_tensor
from pom_export.parity.quantized.weights import distance_of
from tests.quantized_files import one_more, rounded

ROWS = (1, 2, 7, 64, 300)
RANDOM = np.random.default_rng(0)


def product_of(weight: QuantizedWeight, activations: str) -> tuple[Any, QuantizedProduct]:
    """Return a session that runs one product, and the product."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, columns = weight.values.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", columns])],
        [numpy_helper.from_array(weight.dequantized(), "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9))
    (product,) = float_products(model)
    if activations == BLOCKS:
        write_block_product(model, product, weight, INTEGER_ACTIVATIONS)
    else:
        write_dynamic_product(model, product, weight)
    (found,) = quantized_products(model)
    proto: onnx.ModelProto = ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]), found


def activations_of(kind: str, rows: int, columns: int) -> Any:
    array = RANDOM.normal(size=(rows, columns)).astype(np.float32)
    if kind == "positive":
        array = np.abs(array)
    if kind == "outliers":
        array[:, ::37] *= 100
    if kind == "halves":  # many exactly between two integers
        array = np.rint(array * 20).astype(np.float32) / 2
        array[:, 0] = 127
    return array


def share(session: Any, product: QuantizedProduct, given: Any) -> float:
    expected, bounds = expected_product(product, given)
    return float((np.abs(session.run(None, {"x": given})[0] - expected) / bounds).max())


@pytest.mark.parametrize("kind", ["normal", "positive", "outliers", "halves"])
@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks(bits: int, block: int, kind: str) -> None:
    for channels in (64, 200, 333):  # the last two are no multiples of a block
        scales = RANDOM.uniform(0.5, 1, (-(-channels // block), 48)) * RANDOM.choice([-1, 1], 48)
        values = RANDOM.integers(-LARGEST[bits] - 1, LARGEST[bits] + 1, (channels, 48)).astype(np.int8)
        weight = QuantizedWeight(values, scales.astype(np.float32), bits, block)
        session, product = product_of(weight, BLOCKS)
        for rows in ROWS:
            given = activations_of(kind, rows, channels)
            assert share(session, product, given) < 0.5, (channels, rows)
        # Not because the bound is wide: one integer of the weight that is another breaks it.
        other = QuantizedProduct("", one_more(weight), "", BLOCKS, product.input, product.output)
        assert kind == "halves" or share(session, other, given) > 5, channels


@pytest.mark.parametrize("kind", ["normal", "positive", "outliers"])
def test_one_scale_per_call(kind: str) -> None:
    for channels in (64, 200, 333):
        # Seven bits: sums of two products of eight may saturate on processors without VNNI.
        values = RANDOM.integers(-63, 64, (channels, 48)).astype(np.int8)
        weight = QuantizedWeight(values, RANDOM.uniform(0.5, 1, (1, 48)).astype(np.float32), 8, channels)
        session, product = product_of(weight, TENSOR)
        for rows in ROWS:
            given = activations_of(kind, rows, channels)
            assert share(session, product, given) < 0.5, (channels, rows)


def test_zeros_stay_zeros() -> None:
    zeros = np.zeros((2, 40), np.float32)
    for made in (in_blocks(zeros, 16), in_tensor(zeros)):
        assert not made.values.any()


def test_a_number_between_two_integers_may_become_either() -> None:
    given = np.array([[127.0, 2.5, 3.0, 0.0]], np.float32)
    made = in_blocks(given, 16)
    assert made.either.tolist() == [[0.0, 1.0, 0.0, 0.0]]


def test_rounding_is_told_from_other_weights_block_by_block() -> None:
    matrix = RANDOM.standard_t(3, (70, 20)).astype(np.float32)  # a few numbers are far larger than the others
    for bits in (4, 8):
        weight = rounded(matrix, bits, 32)
        assert distance_of(weight, matrix)
        scales = weight.scales.copy()
        scales[2, 7] *= 2  # of the last block, which has 6 rows of 32
        found = distance_of(QuantizedWeight(weight.values, scales, bits, 32), matrix)
        assert not found
        assert (found.block, found.column) == (2, 7)
    zeros = np.zeros((16, 2), np.float32)
    assert distance_of(QuantizedWeight(zeros.astype(np.int8), np.ones((1, 2), np.float32), 4, 16), zeros)
    assert not distance_of(QuantizedWeight(np.ones((16, 2), np.int8), np.ones((1, 2), np.float32), 4, 16), zeros)
