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
from pom_export.graph.saving import save_model
from pom_export.quantization.activations import activation_scales
from pom_export.quantization.for_tensorrt import kept_by_default, nearest_positive, write_for_tensorrt
from pom_export.runtime.session import inference_session

CHECKPOINTS = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture(scope="module", params=["v2_base", "v1_degree3"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINTS / request.param / "checkpoint.pt", path, mask="causal")
    return path


@pytest.mark.parametrize(("kind", "steps"), [("int8", 254), ("int4", 14)])
def test_integers_are_within_half_a_step_of_what_is_not_cut_off(kind: str, steps: int) -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((64, 5)).astype(np.float32)
    matrix[:, 2] = 0
    weight = nearest_positive(matrix, kind)
    assert (weight.scales > 0).all()
    assert weight.type == kind
    blocks = matrix.reshape(len(weight.scales), -1, 5)
    error = np.abs(weight.dequantized().reshape(blocks.shape) - blocks)
    scales = weight.scales[:, None]
    within = np.abs(blocks) <= scales * (steps / 2)
    assert (error[within] <= (scales / 2 * 1.0001 * np.ones_like(blocks))[within]).all()
    peaks = np.abs(blocks).max(1, keepdims=True)
    assert (scales <= np.where(peaks > 0, peaks, 1) / (steps / 2) * 1.0001).all()
    # Never worse than the scales that cut off nothing.
    plain = np.where(peaks > 0, peaks, 1) / (steps / 2)
    assert (error**2).sum() <= ((np.rint(blocks / plain) * plain - blocks) ** 2).sum() * 1.0001


def test_eight_bit_floats_are_within_a_sixteenth() -> None:
    random = np.random.default_rng(0)
    matrix = random.standard_normal((64, 5)).astype(np.float32)
    weight = nearest_positive(matrix, "fp8")
    assert weight.type == "fp8"
    normal = np.abs(matrix) > np.abs(matrix).max(0) / 2**14
    np.testing.assert_allclose(weight.dequantized()[normal], matrix[normal], rtol=1 / 16)


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
    written = write_for_tensorrt(model, products, weights, activations, scales, keep)
    ClaimLeastPass()(model)
    save_model(model, tmp_path / "q.onnx")

    found = {each.name: each for each in quantized_products(ir.load(tmp_path / "q.onnx"))}
    assert found.keys() == {name for name, kind in written.items() if kind == weights}
    assert {name for name, kind in written.items() if kind == "float32"} >= set(keep)
    assert found or weights == "int4"
    if weights == "int8":
        assert {each.activations for each in found.values()} == {FIXED}
    feed = feeds[3]
    one, other = (inference_session(path).run(None, feed)[0] for path in (exported, tmp_path / "q.onnx"))
    assert np.abs(one - other).max() <= tolerance * np.abs(one).max()
    plain = inference_session(tmp_path / "q.onnx", kernels=False).run(None, feed)[0]
    np.testing.assert_allclose(plain, other, atol=1e-4)
