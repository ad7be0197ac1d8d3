"""Half-precision exports: what stays in float32, and that the numbers are right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.nodes import input_names, is_aggregation
from tests.slow_cases import slow_cases

HALVES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
FLOAT = ir.DataType.FLOAT


def aggregations(path: Path) -> list[ir.Node]:
    return [node for node in ir.load(path).graph if is_aggregation(node)]


def types(node: ir.Node) -> dict[str, ir.DataType | None]:
    return {name: value.dtype for name, value in zip(input_names(node), node.inputs, strict=False) if value is not None}


def assert_no_cast_pairs(path: Path) -> None:
    """Assert that no cast follows another cast, and that no constant is cast."""
    for node in ir.load(path).graph:
        if node.op_type == "Cast":
            source = node.inputs[0]
            assert source is not None
            assert not source.is_initializer(), node.name
            before = source.producer()
            assert before is None or before.op_type != "Cast", node.name


def large_coefficients(dim: int = 16) -> nn.Sequential:
    """A mixer of degree 8 whose aggregate leaves float16's range, between layers that stay within it."""
    torch.manual_seed(0)
    mixer = pom_export.PolynomialMixer(dim, degree=8, expand=2)
    nn.init.normal_(mixer.po_coeff, mean=1.0, std=0.1)
    return nn.Sequential(mixer, nn.LayerNorm(dim)).eval()


X = 40 * torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(0))


def test_large_powers_stay_in_float32_and_are_named(tmp_path: Path) -> None:
    lines: list[str] = []
    result = pom_export.export(
        large_coefficients(), tmp_path / "m.onnx", example_inputs=(X,), dtype="float16", progress=lines.append
    )
    assert result.checked == [
        "onnxruntime kernel",
        "onnxruntime function",
        "onnxruntime emulating float16 kernel",
        "onnxruntime without rounding kernel",
        "onnxruntime without rounding function",
    ]
    assert result.outputs == ["y float16[batch, tokens, 16]"]
    assert "the aggregate may reach" in result.kept_in_float32["0"]
    assert any(line.startswith("0 stays in float32: the aggregate may reach") for line in lines)
    (node,) = aggregations(tmp_path / "m.onnx")
    product = node.outputs[0].uses()[0].node
    assert set(types(node).values()) == {FLOAT}
    assert product.op_type == "MatMul"
    assert {value.dtype for value in (*product.inputs, *product.outputs) if value is not None} == {FLOAT}
    assert_no_cast_pairs(tmp_path / "m.onnx")


def test_what_torch_computes_in_float16_is_not_finite() -> None:
    """The reason for aggregating in float32."""
    with torch.no_grad():
        assert not large_coefficients().half()(X.half()).isfinite().all()


@pytest.mark.parametrize("dtype", slow_cases(HALVES, lambda name: name == "float16"))
def test_what_costs_nothing_stays_exact(dtype: str, tmp_path: Path) -> None:
    mixer = pom_export.RotaryPolynomialMixer(8, 3, 2, n_sel_heads=4, max_seq_len=64)
    pom_export.export(mixer, tmp_path / "m.onnx", mask="causal", dtype=dtype)
    (node,) = aggregations(tmp_path / "m.onnx")
    found = types(node)
    assert {found[name] for name in ("coefficients", "gate_bias", "cos", "sin")} == {FLOAT}
    assert {found["x"], found["gate"], node.outputs[0].dtype} == {HALVES[dtype]}
    assert_no_cast_pairs(tmp_path / "m.onnx")


# One case per family, with the mask and the inputs of its export.
FAMILIES = {
    "v2_heads": {"mask": "padding"},
    "v2_degree8": {"mask": "full"},
    "v2_groups_bias": {"mask": "causal"},
    "rope1d_heads": {"mask": "full", "positions": True},
    "rope2d": {"positions": True},
    "v1_degree5": {"mask": "causal"},
    "v1_grouped": {"mask": "full"},
    "v1_cross": {"cross": True},
    "gpt_pom": {},
}


# Every family in float16, and in bfloat16 one of each way that constants and tables reach the op.
IN_BFLOAT16 = ("v2_degree8", "rope1d_heads", "v1_cross", "gpt_pom")
# Rotations are in a test above; the others run in `make test-all`.
QUICK = ("v2_degree8", "v2_groups_bias")


@pytest.mark.parametrize("case", slow_cases(FAMILIES, lambda name: name not in QUICK))
def test_golden_families_agree(case: str, tmp_path: Path) -> None:
    checkpoint = Path(__file__).parents[1] / "data" / "golden" / case / "checkpoint.pt"
    for dtype in HALVES if case in IN_BFLOAT16 else ("float16",):
        model = tmp_path / f"{dtype}.onnx"
        result = pom_export.export(checkpoint, model, dtype=dtype, **FAMILIES[case])
        assert len(result.checked) == (5 if dtype == "float16" else 4), dtype
        assert bool(result.kept_in_float32) == ((case, dtype) == ("v2_degree8", "float16"))
        assert_no_cast_pairs(model)
        tied = {name: w.dtype for name, w in ir.load(model).graph.initializers.items() if "lm_head" in name}
        assert tied == ({"lm_head.weight": HALVES[dtype]} if case == "gpt_pom" else {})


class Norms(nn.Module):
    """Large activations before norms of every kind, and a mixer after them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rms, self.layer = nn.RMSNorm(16, eps=1e-6), nn.LayerNorm(16)
        self.mixer = pom_export.MultiheadPolynomialMixer(16, 4, batch_first=True)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = self.rms(x) + self.layer(x) * keep.unsqueeze(-1).to(x.dtype)
        x = x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-12)
        positions = torch.arange(x.shape[1]).float()
        x = x + (torch.outer(positions, torch.ones(16)) * 1.7).sin()
        scores = x.mean(-1) + (1 - keep.to(x.dtype)) * torch.finfo(torch.float32).min
        y, _ = self.mixer(x, x, x)
        return y * scores.softmax(-1).unsqueeze(-1)


@pytest.mark.parametrize("dtype", slow_cases(HALVES, lambda name: name == "bfloat16"))
def test_norms_of_large_activations_and_masked_softmax(dtype: str, tmp_path: Path) -> None:
    x = 20000 * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1)).clamp(-3, 3)
    keep = torch.ones(2, 9, dtype=torch.int64)
    keep[1, 5:] = 0
    result = pom_export.export(Norms().eval(), tmp_path / "m.onnx", example_inputs=(x, keep), dtype=dtype)
    assert len(result.checked) == (5 if dtype == "float16" else 4)
    hungry = [
        node for node in ir.load(tmp_path / "m.onnx").graph if node.op_type in {"Pow", "ReduceMean", "Softmax", "Sin"}
    ]
    assert hungry
    assert {value.dtype for node in hungry for value in node.outputs} == {FLOAT}
    assert_no_cast_pairs(tmp_path / "m.onnx")


class Products(nn.Module):
    """A v1 mixer whose products leave float16's range on the example."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = pom_export.ProductMixer(16, degree=4, expand=1)
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mixer(x, mask="causal"))


@pytest.mark.parametrize(("scale", "kept"), [pytest.param(1.0, False, marks=pytest.mark.slow), (60.0, True)])
def test_products_are_judged_by_what_was_seen(scale: float, kept: bool, tmp_path: Path) -> None:
    x = scale * torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    result = pom_export.export(Products().eval(), tmp_path / "m.onnx", example_inputs=(x,), dtype="float16")
    assert ("on the test inputs" in result.kept_in_float32.get("mixer", "")) == kept
    assert types(aggregations(tmp_path / "m.onnx")[0])["x"] == (FLOAT if kept else HALVES["float16"])


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    large, small = (
        nn.Sequential(pom_export.PolynomialMixer(16, 2, 2)),
        nn.Sequential(pom_export.PolynomialMixer(16, 2, 2)),
    )
    with torch.no_grad():
        large[0].qc_proj.weight[0, 0] = 1e5
        small[0].ag_proj.weight.mul_(1e-9)
    for model, message in (
        (large, r"qc_proj.weight_transposed.0 holds 100000, but float16 goes up to 65504"),
        (small, r"ag_proj.weight_transposed holds nothing above .*, which is 0 in float16"),
    ):
        with pytest.raises(InputError, match=message):
            pom_export.export(model, tmp_path / "m.onnx", example_inputs=(1e-4 * X,), dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_example_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"example input input reaches .*infinite in float16"):
        pom_export.export(large_coefficients(), tmp_path / "m.onnx", example_inputs=(1e4 * X,), dtype="float16")


def test_an_output_that_is_not_finite_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pom_export.api.traced_source.observe_peaks", lambda *_: {"y": 0.0})
    monkeypatch.setattr("pom_export.graph.precision.range.aggregate_bound", lambda _: 1.0)
    with pytest.raises(ParityError, match="differs from PyTorch by"):
        pom_export.export(large_coefficients(), tmp_path / "m.onnx", example_inputs=(X,), dtype="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("tensorrt_rtx")
def test_tensorrt_for_rtx_takes_casts_around_an_aggregation(tmp_path: Path) -> None:
    pom_export.export(large_coefficients(), tmp_path / "m.onnx", example_inputs=(X,), dtype="float16")
    engine = pom_export.build_engine(
        tmp_path / "m.onnx", tmp_path / "m.engine", backend="tensorrt-rtx", targets=["sm86"]
    )
    assert engine.plugin_layers == 1


def test_outputs_beyond_the_range_are_float32(tmp_path: Path) -> None:
    mixer = large_coefficients()[0]
    result = pom_export.export(mixer, tmp_path / "m.onnx", dtype="float16")
    assert result.outputs == ["y float32[batch, tokens, 16]"]
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": X.numpy().astype(np.float16)})
    assert np.isfinite(y).all()


class LargeProduct(nn.Module):
    """A product beyond float16's range, which its bias brings back; then a quotient by the number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer, self.linear = pom_export.PolynomialMixer(16, 2, 2), nn.Linear(16, 16)
        with torch.no_grad():
            self.linear.weight.copy_(60000 * torch.eye(16))
            self.linear.bias.fill_(-60000)

    def forward(self, x: Tensor) -> Tensor:
        large = self.linear(2 + 0.1 * torch.tanh(self.mixer(x))) / 1000
        return large + self.mixer(x) / x.shape[1] * 10


def test_products_that_their_bias_brings_back_and_counts_stay_in_float32(tmp_path: Path) -> None:
    """ONNX Runtime removes casts between float16 nodes, so only the emulation shows what a device computes."""
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    result = pom_export.export(
        LargeProduct().eval(),
        tmp_path / "m.onnx",
        example_inputs=(x,),
        dynamic_shapes={"x": {1: torch.export.Dim("tokens", min=2)}},
        dtype="float16",
    )
    assert set(result.kept_in_float32) == {"linear"}
    nodes = list(ir.load(tmp_path / "m.onnx").graph)
    (product,) = (node for node in nodes if node.op_type == "MatMul" and (node.name or "").startswith("linear/"))
    assert product.outputs[0].dtype == FLOAT
    counts = [node for node in nodes if node.op_type == "Div" and node.inputs[1].producer() is not None]
    assert counts
    assert all(value.dtype == FLOAT for node in counts for value in node.inputs)


def test_a_file_that_overflows_on_a_device_fails_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CPU provider computes it correctly, because it uses float32."""
    monkeypatch.setattr("pom_export.api.traced_source.observe_peaks", lambda *_: {})
    x = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ParityError, match="emulating float16"):
        pom_export.export(LargeProduct().eval(), tmp_path / "m.onnx", example_inputs=(x,), dtype="float16")


@pytest.mark.parametrize("suffix", slow_cases(["json", "textproto", "onnxtxt"], lambda name: name != "json"))
def test_any_suffix_will_do(suffix: str, tmp_path: Path) -> None:
    mixer = pom_export.PolynomialMixer(8, 2, 1)
    assert len(pom_export.export(mixer, tmp_path / f"m.{suffix}", dtype="bfloat16").checked) == 4


class Timed(nn.Module):
    """Tokens with added sines of a time, whose frequencies enlarge the rounding error of an angle."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(16, 2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None, None] * torch.linspace(1, 300, 16)
        return x + self.mixer(x) + angles.sin()


@pytest.mark.parametrize("dtype", slow_cases(HALVES, lambda name: name == "bfloat16"))
def test_angles_of_times_are_computed_in_float32(dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    times = torch.tensor([0.0, 0.734375, 1.0])  # values that both types represent
    inputs = (torch.randn(3, 5, 16), times)
    # Rounded to half precision, 300 times the second would be off by 0.06 or more, and the export would be refused.
    result = pom_export.export(Timed(), tmp_path / "m.onnx", example_inputs=inputs, dtype=dtype)
    assert f"t {dtype}[batch]" in result.inputs
    (sine,) = [node for node in ir.load(tmp_path / "m.onnx").graph if node.op_type == "Sin"]
    product = sine.inputs[0].producer() if sine.inputs[0] is not None else None
    assert product is not None
    assert [value.dtype for value in product.inputs if value is not None] == [FLOAT, FLOAT]
