"""Products of dequantized values: what is written, what ONNX Runtime computes from it, and what is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from pom_export.errors import InputError
from pom_export.graph.opsets import raise_opset
from pom_export.graph.quantized.block_weights import FLOAT8, QuantizedWeight
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.reading import (
    FIXED,
    FIXED_FLOAT8,
    FLOAT32,
    QuantizedProduct,
    dequantize,
    quantized_products,
)
from pom_export.graph.quantized.scaled import write_scaled_product

ROWS, COLUMNS = 8, 6
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, ROWS)).astype(np.float32)


def two_products() -> ir.Model:
    """Return a graph with two products of one input."""
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 9, opset_import: ["" : 18]>
        g (float[a, b, {ROWS}] x) => (float[a, b, {COLUMNS}] y, float[a, b, {COLUMNS}] z)
        {{
            [one] y = MatMul(x, v)
            [two] z = MatMul(x, w)
        }}"""
    )
    for name in ("v", "w"):
        values = RANDOM.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def weight_of(kind: str) -> QuantizedWeight:
    block = 4 if kind == "int4" else ROWS
    scales = RANDOM.uniform(0.01, 0.1, (ROWS // block, COLUMNS)).astype(np.float32)
    if kind == "fp8":
        return QuantizedWeight(RANDOM.standard_normal((ROWS, COLUMNS)).astype(FLOAT8), scales, 8, block)
    bits = int(kind[3:])
    most = (1 << (bits - 1)) - 1
    return QuantizedWeight(RANDOM.integers(-most, most + 1, (ROWS, COLUMNS)).astype(np.int8), scales, bits, block)


def rounded(x: npt.NDArray[np.float32], kind: str, scale: float | None) -> npt.NDArray[np.float32]:
    if scale is None:
        return x
    step = np.float32(scale)
    small = np.clip(np.rint(x / step), -128, 127) if kind == "int8" else (x / step).astype(FLOAT8)
    return small.astype(np.float32) * step


def run(model: ir.Model, path: Path) -> list[npt.NDArray[np.float32]]:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    # ONNX Runtime makes MatMul(x, DQ(weight)) an operator that rounds x to 8 bits, unless this asks for float32.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    found: list[npt.NDArray[np.float32]] = onnxruntime.InferenceSession(path, options).run(None, {"x": X})
    return found


@pytest.mark.parametrize(
    ("kind", "scale", "activations", "opset"),
    [
        ("int8", None, FLOAT32, 18),
        ("int8", 0.05, FIXED, 18),
        ("fp8", None, FLOAT32, 19),
        ("fp8", 0.01, FIXED_FLOAT8, 19),
        ("int4", None, FLOAT32, 21),
    ],
)
def test_what_is_written_is_computed_and_read_back(
    kind: str, scale: float | None, activations: str, opset: int, tmp_path: Path
) -> None:
    model = two_products()
    weights = [weight_of(kind), weight_of(kind)]
    for product, weight in zip(float_products(model), weights, strict=True):
        write_scaled_product(model, product, weight, scale)
    assert model.opset_imports[""] == opset
    model.ir_version = 10
    assert "v" not in model.graph.initializers
    computed = run(model, tmp_path / "quantized.onnx")
    for made, weight in zip(computed, weights, strict=True):
        assert weight.type == kind
        np.testing.assert_allclose(made, rounded(X, kind, scale) @ weight.dequantized(), rtol=1e-5, atol=1e-5)

    read = ir.load(tmp_path / "quantized.onnx")
    found: list[QuantizedProduct] = quantized_products(read)
    assert [(each.name, each.initializer, each.activations) for each in found] == [
        ("one", "v", activations), ("two", "w", activations)
    ]  # fmt: skip
    for each, weight in zip(found, weights, strict=True):
        assert each.weight.type == kind
        assert each.weight.block == weight.block
        np.testing.assert_array_equal(each.weight.dequantized(), weight.dequantized())
        assert each.activation_scale == pytest.approx(scale)
    dequantize(read)
    assert [node.op_type for node in read.graph] == ["MatMul", "MatMul"]
    assert set(read.graph.initializers) == {"v", "w"}
    for made, weight in zip(run(read, tmp_path / "float.onnx"), weights, strict=True):
        np.testing.assert_allclose(made, X @ weight.dequantized(), rtol=1e-5, atol=1e-5)


def test_each_product_has_a_pair_of_its_own_that_nothing_merges_with_another(tmp_path: Path) -> None:
    model = two_products()
    for product in float_products(model):
        write_scaled_product(model, product, weight_of("int8"), 0.05)
    one, two = (each.activation_scale for each in quantized_products(model))
    assert (one, two) == (np.float32(0.05), np.nextafter(np.float32(0.05), np.float32(1)))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ir.save(model, tmp_path / "m.onnx")
    onnxruntime.InferenceSession(tmp_path / "m.onnx", options)
    run_by = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert run_by.count("QuantizeLinear") == 2, run_by
    assert run_by.count("MatMulIntegerToFloat") == 2, run_by


def test_products_share_a_pair_if_asked_and_their_scales_agree() -> None:
    model = two_products()
    one, two = float_products(model)
    write_scaled_product(model, one, weight_of("int8"), 0.05, shared=True)
    write_scaled_product(model, two, weight_of("int8"), 0.05, shared=True)
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1
    assert [each.activation_scale for each in quantized_products(model)] == [np.float32(0.05)] * 2

    model = two_products()
    one, two = float_products(model)
    write_scaled_product(model, one, weight_of("int8"), 0.05, shared=True)
    write_scaled_product(model, two, weight_of("fp8"), 0.05, shared=True)
    assert [each.activations for each in quantized_products(model)] == [FIXED, FIXED_FLOAT8]


def test_products_of_float16_stay_so(tmp_path: Path) -> None:
    model = two_products()
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float16))
        value.type = ir.TensorType(ir.DataType.FLOAT16)
    assert float_products(model) == []
    one, two = float_products(model, [ir.DataType.FLOAT16])
    weights = [weight_of("int8"), weight_of("int4")]
    write_scaled_product(model, one, weights[0], 0.05)
    write_scaled_product(model, two, weights[1])
    model.ir_version = 10
    ir.save(model, tmp_path / "m.onnx")
    onnx.checker.check_model(tmp_path / "m.onnx", full_check=True)
    # Multiples of the step: no value is so near the middle between two that float16 decides.
    x = np.rint(X / np.float16(0.05)) * np.float32(np.float16(0.05))
    made = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.astype(np.float16)})
    for array, weight in zip(made, weights, strict=True):
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, x @ weight.dequantized(), rtol=0.02, atol=0.02)
    dequantize(model)
    assert [value.dtype for value in model.graph.initializers.values()] == [ir.DataType.FLOAT16] * 2

    with pytest.raises(InputError, match=r"one needs a scale of 1e-07, which float16 does not hold closely enough"):
        write_scaled_product(model, float_products(model, [ir.DataType.FLOAT16])[0], weights[0], 1e-7)


def test_a_scale_that_is_not_positive_is_refused() -> None:
    model = two_products()
    weight = weight_of("int8")
    weight.scales[0, 3] = -0.5
    with pytest.raises(InputError, match=r"one needs a scale of -0\.5"):
        write_scaled_product(model, float_products(model)[0], weight, 0.05)


def test_an_opset_is_raised_in_functions_too_and_not_where_an_operator_changed() -> None:
    model = ir.from_proto(
        onnx.parser.parse_model(
            """
            <ir_version: 9, opset_import: ["" : 18, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.Twice(x) }
            <domain: "f", opset_import: ["" : 18]> Twice (x) => (y) { y = Add(x, x) }"""
        )
    )
    raise_opset(model, 17)
    assert model.opset_imports[""] == 18
    raise_opset(model, 21)
    assert model.opset_imports[""] == 21
    assert [body.opset_imports[""] for body in model.functions.values()] == [21]

    (body,) = model.functions.values()
    model.opset_imports[""] = body.opset_imports[""] = 18
    body[0].op_type, body[0].name = "GridSample", "sample"
    with pytest.raises(InputError, match=r"GridSample 'sample' of opset 18 .* `opset=21`"):
        raise_opset(model, 21)
    assert model.opset_imports[""] == 18
