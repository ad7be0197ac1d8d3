"""Files of small values for TensorRT, of a real model: what is written, what it costs, and what stays as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import pom_export
from pom_export.graph.passes.claim_least import ClaimLeastPass
from pom_export.graph.quantized.products import float_products
from pom_export.graph.quantized.reading import FIXED, quantized_products
from pom_export.graph.quantized.scaled import write_scaled_product
from pom_export.graph.saving import save_model
from pom_export.quantization.activations import activation_scales
from pom_export.quantization.for_tensorrt import fits, kept_by_default, rounded_weight
from pom_export.runtime.session import inference_session

CHECKPOINTS = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module", params=["v2_base", "v1_degree3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINTS / request.param / "checkpoint.pt", path, mask="causal")
    return path


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.007), ("int4", 0.1), ("fp8", 0.04)])
def test_weights_are_close_and_their_scales_positive(kind: str, bound: float) -> None:
    matrix = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    matrix[:, 2] = 0
    for moments in (None, np.eye(64)):
        weight = rounded_weight(matrix, kind, moments)
        assert weight.type == kind
        assert len(weight.scales) == (2 if kind == "int4" else 1)
        assert (weight.scales > 0).all()
        assert np.sqrt(((weight.dequantized() - matrix) ** 2).mean() / (matrix**2).mean()) < bound


def test_int4_weights_need_whole_blocks_and_an_even_number_of_columns() -> None:
    shapes = ((64, 16), (48, 16), (64, 61))
    assert [fits(shape, "int4") for shape in shapes] == [True, False, False]
    assert all(fits(shape, kind) for shape in shapes for kind in ("int8", "fp8"))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_product_of_the_aggregate_stays_in_float_for_int8(exported: Path, kind: str) -> None:
    products = float_products(ir.load(exported))
    kept = kept_by_default(products, kind)
    assert [name.partition("/")[0] for name in kept] == ([] if kind == "fp8" else ["ag_proj"])
    assert len(products) > 1


@pytest.mark.parametrize(
    ("weights", "activations", "tolerance"), [("int8", "int8", 0.05), ("fp8", "fp8", 0.1), ("int4", None, 0.2)]
)
def test_a_file_is_written_that_computes_nearly_the_same(
    exported: Path, tmp_path: Path, weights: str, activations: str | None, tolerance: float
) -> None:
    model = ir.load(exported)
    products = float_products(model)
    width = products[0].shape[0]
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((2, 16, width)).astype(np.float32)} for _ in range(4)]
    keep = kept_by_default(products, activations)
    scales = {}
    if activations:
        inputs = {product.input for product in products if product.name not in keep}
        scales = activation_scales(exported, inputs, feeds[:3], activations)
    written = [product for product in products if product.name not in keep and fits(product.shape, weights)]
    for product in written:
        weight = rounded_weight(product.matrix(), weights)
        write_scaled_product(model, product, weight, scales.get(product.input), shared=True)
    ClaimLeastPass()(model)
    save_model(model, tmp_path / "q.onnx")

    found = {each.name: each for each in quantized_products(ir.load(tmp_path / "q.onnx"))}
    assert found.keys() == {product.name for product in written}
    assert found
    if weights == "int8":
        assert {each.activations for each in found.values()} == {FIXED}
    feed = feeds[3]
    one, other = (inference_session(path).run(None, feed)[0] for path in (exported, tmp_path / "q.onnx"))
    assert np.abs(one - other).max() <= tolerance * np.abs(one).max()
    plain = inference_session(tmp_path / "q.onnx", kernels=False).run(None, feed)[0]
    np.testing.assert_allclose(plain, other, atol=1e-4)
