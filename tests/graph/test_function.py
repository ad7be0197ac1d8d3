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
    """Run one node through its function."""
    mask_type = TYPES[dtype if mask == "same" else mask] if mask else None
    degree = feed["coefficients"].shape[1]
    variant = FunctionVariant(mode, epsilon, degree, TYPES[dtype], TYPES[dtype], mask_type)
    function = ir.to_proto(build_function(variant, OPSET))
    names = list(feed)
    node = onnx.helper.make_node(contract.OP_NAME, names, ["y"], domain=contract.DOMAIN, **attributes(mode, epsilon))
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
        for name, a in feed.items()
    ]
    output = onnx.helper.make_tensor_value_info("y", int(TYPES[dtype]), [None] * 3)
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
    # Beyond both clamps for low degrees; the powers of 6 leave float16 from degree 7 on.
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
    y = run(mode, mask, dtype, epsilon, feed)
    assert y.dtype == dtype
    assert difference(y, expected(mode, epsilon, feed), OPS[dtype])


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_an_absent_token_adds_nothing_whatever_it_holds(mode: str) -> None:
    feed = draw(2, 9, 3, "bool", "float32")
    reference = run(mode, "bool", "float32", 0.0, feed)
    feed["x"] = np.where(feed["mask"][..., None], feed["x"], np.float32(np.nan))
    np.testing.assert_array_equal(run(mode, "bool", "float32", 0.0, feed), reference)
    np.testing.assert_array_equal(reference[0], np.zeros_like(reference[0]))
