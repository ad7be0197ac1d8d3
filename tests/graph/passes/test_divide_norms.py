"""RMS normalisation is written as ONNX Runtime fuses it."""

from __future__ import annotations

from collections import Counter
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
from pom_export.graph.passes import DivideNormsPass
from pom_export.runtime.session import default_session_options

HEADER = '<ir_version: 9, opset_import: ["" : 20]> g '
X = np.random.default_rng(0).standard_normal((2, 5, 4)).astype(np.float32)
GIVEN = "(float[2, N, 4] x) => (float[2, N, 4] y)"
WEIGHTS = (
    "<float two = {2}, int64[1] last = {-1}, int64[1] middle = {1}, float e = {0.000001}, float[4] w = {1, 2, 3, 4}>"
)
NORM = "p = Pow(x, two) m = ReduceMean(p, last) a = Add(m, e) s = Sqrt(a) r = Reciprocal(s) "
REWRITTEN = {
    "no scale": f"{GIVEN} {WEIGHTS} {{ {NORM} y = Mul(x, r) }}",
    "a scale": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Mul(x, r) y = Mul(n, w) }}",
    "exchanged operands": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Mul(r, x) y = Mul(w, n) }}",
    "used twice": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Mul(x, r) z = Mul(n, w) y = Add(z, n) }}",
    "the axis counted from the front": f"{GIVEN} {WEIGHTS[:-1]}, int64[1] third = {{2}}> "
    f"{{ {NORM.replace('last', 'third')} y = Mul(x, r) }}",
    "normalised twice": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Mul(x, r) q = Pow(n, two) o = ReduceMean(q, last) "
    "b = Add(o, e) t = Sqrt(b) v = Reciprocal(t) y = Mul(n, v) }",
}
LEFT = {
    "another axis": f"{GIVEN} {WEIGHTS} {{ {NORM.replace('last', 'middle')} y = Mul(x, r) }}",
    "another power": f"{GIVEN} {WEIGHTS.replace('{2}', '{4}')} {{ {NORM} y = Mul(x, r) }}",
    "another value": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Neg(x) y = Mul(n, r) }}",
    "no epsilon": f"{GIVEN} {WEIGHTS} {{ {NORM.replace('Add(m, e)', 'Add(m, m)')} y = Mul(x, r) }}",
    "the factor is used elsewhere": f"{GIVEN} {WEIGHTS} {{ {NORM} n = Mul(x, r) y = Mul(n, r) }}",
    "an unknown width": f"(float[2, N, M] x) => (float[2, N, M] y) {WEIGHTS} {{ {NORM} y = Mul(x, r) }}",
}


def parsed(text: str) -> onnx.ModelProto:
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(HEADER + text))
    for node in model.graph.node:
        node.name = f"norm/{node.output[0]}"
    return model


def after_fusion(model: Path | bytes, folder: Path) -> Counter[str]:
    """Return how many nodes of each operator ONNX Runtime runs."""
    options = default_session_options()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if isinstance(model, bytes):
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    else:
        pom_export.inference_session(model, session_options=options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_norm_is_one_node_and_gives_the_same(name: str, tmp_path: Path) -> None:
    before = parsed(REWRITTEN[name])
    assert not after_fusion(before.SerializeToString(), tmp_path)["SimplifiedLayerNormalization"]
    model = ir.from_proto(before)
    assert DivideNormsPass()(model).modified
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    wanted, found = (ReferenceEvaluator(each).run(None, {"x": X})[0] for each in (before, after))
    np.testing.assert_allclose(wanted, found, rtol=1e-6)

    fused = after_fusion(after.SerializeToString(), tmp_path)

    assert fused["SimplifiedLayerNormalization"] == (2 if name == "normalised twice" else 1)
    assert not fused.keys() & {"Pow", "ReduceMean", "Sqrt", "Div", "Reciprocal"}
    session = ort.InferenceSession(after.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], wanted, rtol=1e-5)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_no_such_norm_stays(name: str) -> None:
    before = parsed(LEFT[name])
    model = ir.from_proto(before)
    assert not DivideNormsPass()(model).modified
    assert [node.op_type for node in model.graph] == [node.op_type for node in before.graph.node]


class Norms(nn.Module):
    """RMS norms as people write them, before a mixer and a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained, self.fresh, self.plain = nn.RMSNorm(24), nn.RMSNorm(24), nn.RMSNorm(24, elementwise_affine=False)
        nn.init.normal_(self.trained.weight, std=0.3, mean=1)
        self.mixer = pom_export.PolynomialMixer(24, degree=2, expand=2)
        self.layer = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.trained(x), mask="causal")
        x = x + self.layer(self.fresh(x))
        x = self.plain(x)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@pytest.mark.parametrize("optimize", [True, False])
def test_the_norms_of_an_export_are_one_node_each(optimize: bool, tmp_path: Path) -> None:
    # The export compares the file with PyTorch.
    pom_export.export(Norms().eval(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 9, 24),), optimize=optimize)
    fused = after_fusion(tmp_path / "m.onnx", tmp_path)
    assert fused["SimplifiedLayerNormalization"] == (4 if optimize else 0)
    assert (fused["Sqrt"], fused["Reciprocal"]) == ((0, 0) if optimize else (4, 4))


def test_the_nodes_are_named_after_their_modules(tmp_path: Path) -> None:
    pom_export.export(Norms().eval(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 9, 24),))
    model = onnx.load(tmp_path / "m.onnx")
    quotients = [node.name.partition("/")[0] for node in model.graph.node if node.op_type == "Div"]
    assert quotients == ["trained", "fresh", "plain", "Mul"]
    # Equal scales are stored once.
    assert [tensor.name for tensor in model.graph.initializer if tensor.name.startswith("ones")] == ["ones_24"]


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_half_precision_norm_divides_in_float32(dtype: str, tmp_path: Path) -> None:
    pom_export.export(Norms().eval(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 9, 24),), dtype=dtype)
    quotients = [node for node in ir.load(tmp_path / "m.onnx").graph if node.op_type == "Div"]
    assert len(quotients) == 4
    assert {value.dtype for node in quotients for value in node.outputs} == {ir.DataType.FLOAT}
