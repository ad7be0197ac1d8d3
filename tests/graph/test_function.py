"""The op's function body in stock ONNX Runtime, against the reference in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from pom_export import contract
from pom_export.graph.function import FunctionVariant, build_function
from pom_export.graph.schema import attributes, register_schema
from pom_export.mixer.reference import polynomial_aggregation
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import OPS

OPSET = 20
TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "bool": ir.DataType.BOOL}
CASES = [
    (mode, mask, dtype, epsilon)
    for mode in contract.MODES
    for mask in (None, "bool", "same")
    for dtype in ("float32", "float16")
    for epsilon in (0.0, 0.25)
    if not (mode == "features" and mask)
]


def run(mode: str, mask: str | None, dtype: str, epsilon: float, feed: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Run one node of form "power" without rotation through its function."""
    mask_type = TYPES[dtype if mask == "same" else mask] if mask else None
    degree = feed["coefficients"].shape[1]
    variant = FunctionVariant(mode, epsilon, degree, TYPES[dtype], TYPES[dtype], mask_type)
    return run_variant(variant, attributes(mode, epsilon), feed)


def run_variant(variant: FunctionVariant, values: dict[str, Any], feed: dict[str, np.ndarray[Any, Any]]) -> Any:
    """Run one node through its function."""
    function = ir.to_proto(build_function(variant, OPSET))
    node = onnx.helper.make_node(contract.OP_NAME, list(feed), ["y"], domain=contract.DOMAIN, **values)
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for name, a in feed.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", int(variant.x_type), [None] * 3)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", inputs, [output]), opset_imports=opsets, functions=[function], ir_version=10
    )
    register_schema()
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def draw(batch: int, tokens: int, degree: int, mask: str | None, dtype: str) -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(tokens + degree)
    # Beyond both clamps for low degrees; powers of 6 leave float16's range from degree 7 on.
    scale = 6 if degree <= 4 else 0.5
    feed = {
        "x": (scale * generator.standard_normal((batch, tokens, 5))).astype(dtype),
        "coefficients": generator.standard_normal((5, degree)).astype(dtype),
    }
    if mask == "bool":
        feed["mask"] = generator.random((batch, tokens)) < 0.6
        feed["mask"][0] = False
    elif mask == "same":
        feed["mask"] = np.where(generator.random((1, tokens)) < 0.5, generator.random((1, tokens)), 0).astype(dtype)
    return feed


def expected(mode: str, epsilon: float, feed: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    tensors = {n: torch.from_numpy(a.astype(np.float64) if a.dtype != bool else a) for n, a in feed.items()}
    return polynomial_aggregation(tensors["x"], tensors["coefficients"], tensors.get("mask"), mode, epsilon).numpy()


@pytest.mark.parametrize(("mode", "mask", "dtype", "epsilon"), CASES)
@pytest.mark.parametrize(("batch", "tokens", "degree"), [(2, 7, 3), (1, 1, 1), (3, 300, 2), (2, 33, 16), (2, 0, 3)])
def test_the_function_is_the_reference(
    mode: str, mask: str | None, dtype: str, epsilon: float, batch: int, tokens: int, degree: int
) -> None:
    feed = draw(batch, tokens, degree, mask, dtype)
    y, wanted = run(mode, mask, dtype, epsilon, feed), expected(mode, epsilon, feed)
    assert (y.dtype, y.shape) == (dtype, wanted.shape)
    assert difference(y, wanted, OPS[dtype]) or not y.size  # nothing agrees with nothing


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_an_absent_token_adds_nothing_whatever_it_holds(mode: str) -> None:
    feed = draw(2, 9, 3, "bool", "float32")
    reference = run(mode, "bool", "float32", 0.0, feed)
    feed["x"] = np.where(feed["mask"][..., None], feed["x"], np.float32(np.nan))
    np.testing.assert_array_equal(run(mode, "bool", "float32", 0.0, feed), reference)
    np.testing.assert_array_equal(reference[0], np.zeros_like(reference[0]))


@pytest.mark.parametrize("mode", contract.MODES)
@pytest.mark.parametrize("mask", [None, "bool"])
@pytest.mark.parametrize("degree", [1, 2, 5, 16])
def test_the_product_form_is_the_reference(mode: str, mask: str | None, degree: int) -> None:
    if mode == "features" and mask:
        return
    feed = draw(2, 33, 1, mask, "float32")
    x = np.random.default_rng(degree).standard_normal((2, 33, 3 * degree)).astype(np.float32)
    feed |= {"x": x, "coefficients": np.ones(1, np.float32)}
    mask_type = TYPES[mask] if mask else None
    variant = FunctionVariant(mode, 1e-7 if mask else 0.0, degree, TYPES["float32"], None, mask_type)

    y = run_variant(variant, attributes(mode, variant.epsilon, degree=degree), feed)

    weights = torch.from_numpy(feed["mask"]) if mask else None
    wanted = polynomial_aggregation(torch.from_numpy(x).double(), None, weights, mode, variant.epsilon, degree=degree)
    assert difference(y, wanted.numpy(), OPS["float32"])


@pytest.mark.parametrize("mode", contract.MODES)
@pytest.mark.parametrize("mask", [None, "bool"])
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("table", [(19, 6), (2, 19, 6)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_rotation_is_the_reference(
    mode: str, mask: str | None, blocks: int, table: tuple[int, ...], dtype: str
) -> None:
    if mode == "features" and mask:
        return
    generator = np.random.default_rng(blocks)
    angles = 6 * generator.random(table)
    feed = {
        "x": generator.standard_normal((2, 19, 12)).astype(dtype),
        "coefficients": generator.standard_normal((12, 3)).astype(dtype),
        "mask": generator.random((2, 19)) < 0.6 if mask else np.ones(1, bool),
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
    }
    kind = TYPES[dtype]
    mask_type = TYPES[mask] if mask else None
    variant = FunctionVariant(mode, 0.0, 3, kind, kind, mask_type, TYPES["float32"], blocks)

    y = run_variant(variant, attributes(mode, rotary_blocks=blocks), feed)

    x, coefficients, cos, sin = (torch.from_numpy(feed[n]).double() for n in ("x", "coefficients", "cos", "sin"))
    weights = torch.from_numpy(feed["mask"]) if mask else None
    wanted = polynomial_aggregation(x, coefficients, weights, mode, cos=cos, sin=sin, rotary_blocks=blocks)
    assert difference(y, wanted.numpy(), OPS[dtype])
