"""Files of float16 for TensorRT: products of small types, and everything else in half precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import pom_export
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from pom_export.graph.quantized.reading import FIXED, FIXED_FLOAT8, FLOAT32, quantized_products

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    pom_export.export(CHECKPOINT, path, mask="causal", dtype="float16")
    return path


@pytest.mark.parametrize(
    ("options", "kind", "activations", "kept"),
    [
        ({"activations": "int8"}, "int8", FIXED, ["ag_proj/MatMul"]),
        ({"activations": "fp8"}, "fp8", FIXED_FLOAT8, []),
        ({"weights": "int4", "runtime": "tensorrt"}, "int4", FLOAT32, []),
    ],
)
def test_the_rest_stays_in_half_precision(
    half: Path, tmp_path: Path, options: dict[str, str], kind: str, activations: str, kept: list[str]
) -> None:
    x = np.random.default_rng(0).standard_normal((16, 12, 32)).astype(np.float16)
    result = pom_export.quantize(half, tmp_path / "q.onnx", calibrate={"x": x}, max_error=0.5, **options)
    assert result.products == {kind: 3 - len(kept)} | ({"float16": len(kept)} if kept else {})
    assert dict(result.kept) == dict.fromkeys(kept, "float16")
    assert any(path.endswith("kernel") for path in result.checked)

    model = ir.load(tmp_path / "q.onnx")
    found = quantized_products(model)
    assert {product.activations for product in found} == {activations}
    assert {product.output.dtype for product in found} == {ir.DataType.FLOAT16}
    aggregation = next(node for node in model.graph if node.op_type == "GatedPolynomialAggregation")
    assert aggregation.inputs[0] is not None
    assert aggregation.inputs[0].dtype == ir.DataType.FLOAT16
    assert read_model(tmp_path / "q.onnx").precision == "float16"


def test_other_files_of_half_precision_are_refused(half: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is in float16, and files for onnxruntime are made of those in float32"):
        pom_export.quantize(half, tmp_path / "q.onnx", weights="int8")
    pom_export.export(CHECKPOINT, tmp_path / "b.onnx", mask="causal", dtype="bfloat16")
    with pytest.raises(InputError, match=r"is in bfloat16, and files for tensorrt are made of .*float32 or float16"):
        pom_export.quantize(tmp_path / "b.onnx", tmp_path / "q.onnx", activations="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["b.onnx"]
