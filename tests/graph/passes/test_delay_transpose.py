"""A half-precision file transposes no batch before a product, which would crash ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import pom_export
from pom_export.graph.passes import DelayTransposePass

HEADER = '<ir_version: 9, opset_import: ["" : 20]> g '
X = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
WEIGHT = "float[4, 6] w = {" + ", ".join(str(v / 10) for v in range(24)) + "}"
MOVED = {
    "three axes": "(float[2, N, 4] x) => (float[N, 2, 6] y) <W> { t = Transpose<perm=[1, 0, 2]>(x) y = MatMul(t, w) }",
    "four axes": "(float[2, 3, N, 4] x) => (float[3, N, 2, 6] y) <W> "
    "{ t = Transpose<perm=[1, 2, 0, 3]>(x) y = MatMul(t, w) }",
    "a cast between": "(float16[2, N, 4] x) => (float[N, 2, 6] y) <W> "
    "{ t = Transpose<perm=[1, 0, 2]>(x) c = Cast<to=1>(t) y = MatMul(c, w) }",
    "used further": "(float[2, N, 4] x) => (float[N, 2, 6] z, float[N, 2, 4] t) <W> "
    "{ t = Transpose<perm=[1, 0, 2]>(x) y = MatMul(t, w) z = Add(y, y) }",
}
LEFT = {
    "other axes": "(float[2, N, 4] x) => (float[4, 2, 4] y) { t = Transpose<perm=[2, 0, 1]>(x) y = MatMul(t, x) }",
    "the last axis": "(float[4, 2, N] x) => (float[2, N, 6] y) <W> "
    "{ t = Transpose<perm=[1, 2, 0]>(x) y = MatMul(t, w) }",
    "no matrix": "(float[2, 2, 2] x) => (float[2, 2, 2] y) { t = Transpose<perm=[1, 0, 2]>(x) y = MatMul(t, x) }",
}


def parsed(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEADER + text.replace("<W>", f"<{WEIGHT}>"))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("name", MOVED)
def test_the_product_comes_first_and_gives_the_same(name: str) -> None:
    before = parsed(MOVED[name])
    model = ir.from_proto(before)
    assert DelayTransposePass()(model).modified
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    made_by = {output: node for node in after.graph.node for output in node.output}
    [product] = [node for node in after.graph.node if node.op_type == "MatMul"]
    source = made_by.get(product.input[0])
    assert source is None or (source.op_type == "Cast" and source.input[0] == "x")
    assert [output.name for output in after.graph.output] == [output.name for output in before.graph.output]
    x = X[:, 0] if len(before.graph.input[0].type.tensor_type.shape.dim) == 3 else X
    x = x.astype(onnx.helper.tensor_dtype_to_np_dtype(before.graph.input[0].type.tensor_type.elem_type))
    wanted, found = (ReferenceEvaluator(each).run(None, {"x": x}) for each in (before, after))
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("name", LEFT)
def test_other_products_stay(name: str) -> None:
    before = parsed(LEFT[name])
    model = ir.from_proto(before)
    assert not DelayTransposePass()(model).modified
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph.node]


class TokensFirst(nn.Module):
    """Attention with its tokens first, torch's default, beside a mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4)
        self.mixer = pom_export.PolynomialMixer(24, degree=2, expand=2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).transpose(0, 1)
        x = x + self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(0, 1)
        return x + self.mixer(x)


@pytest.mark.slow
def test_a_float16_file_with_attention_loads_in_plain_onnx_runtime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = TokensFirst().eval(), torch.randn(2, 9, 24)
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,), dtype="float16")
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": x.half().numpy()})
    np.testing.assert_allclose(y, model(x).detach(), atol=0.02)
