"""What torch's exporters make of mixers becomes the op."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export import contract
from tests.official_style import PoM, ProductPoM, RotaryPoM, SeparatePoM
from tests.plain_graphs import attribute, ours

_PATHS = ["onnxruntime kernel", "onnxruntime function"]


class TokensLast(nn.Module):
    """A mixer that never leaves the layout of its convolutions, (B, C, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gate, self.last = (nn.Conv1d(a, b, 1) for a, b in ((8, 12), (8, 12), (12, 8)))
        self.coefficients = nn.Parameter(torch.randn(2, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.leaky_relu(self.context(x.transpose(1, 2)), 0.01).clamp(-0.1, 6.0)
        p = self.coefficients[0] * h + self.coefficients[1] * h * h
        y: Tensor = self.last(torch.sigmoid(self.gate(x.transpose(1, 2))) * p.mean(2, keepdim=True))
        return y.transpose(1, 2)


class HeadsFirst(nn.Module):
    """A causal mixer whose channels are heads before the tokens, (B, H, N, C / H)."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gate, self.last = nn.Linear(8, 12), nn.Linear(8, 3), nn.Linear(12, 8)
        self.coefficients = nn.Parameter(torch.randn(2, 3, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        u = self.context(x).unflatten(-1, (3, 4)).transpose(1, 2)
        h = nn.functional.leaky_relu(u, 0.01).clamp(-0.1, 6.0)
        p = self.coefficients[0] * h + self.coefficients[1] * h * h
        a = torch.tril(torch.ones(tokens, tokens)) @ p / torch.arange(1, tokens + 1)[:, None]
        gated = torch.sigmoid(self.gate(x)).transpose(1, 2).unsqueeze(-1) * a
        y: Tensor = self.last(gated.transpose(1, 2).flatten(2))
        return y


@pytest.mark.parametrize(("module", "mode"), [(TokensLast, "mean"), (HeadsFirst, "causal")])
def test_other_layouts(module: Callable[[], nn.Module], mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_torchscript(module().eval(), {"x": torch.randn(2, 5, 8)}, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left, result.checked) == (1, [], _PATHS)
    assert [attribute(node, "mode") for node in ours(tmp_path / "out.onnx")] == [mode]


class Masked(nn.Module):
    """A mixer with a fixed kind of mask, or with one that is given."""

    def __init__(self, mixer: nn.Module, mask: str | None) -> None:
        super().__init__()
        self.mixer, self.mask = mixer, mask

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.mixer(x, mask=self.mask if mask is None else mask)
        return found


def by_dynamo(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    sizes = [torch.export.Dim("batch"), torch.export.Dim("tokens"), torch.export.Dim("tokens")]
    torch.onnx.export(
        module,
        kwargs=dict(inputs),
        f=path,
        dynamo=True,
        verbose=False,
        dynamic_shapes={
            name: {axis: sizes[axis] for axis in range(x.dim() - (name == "x"))} for name, x in inputs.items()
        },
    )


def by_torchscript(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    axes = {
        name: dict(enumerate(["batch", "tokens", "tokens"][: x.dim() - (name == "x")])) for name, x in inputs.items()
    }
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        path,
        dynamo=False,
        opset_version=17,
        input_names=list(inputs),
        output_names=["y"],
        dynamic_axes={**axes, "y": {0: "batch", 1: "tokens"}},
    )


_EXPORTERS: Mapping[str, Callable[..., None]] = {"dynamo": by_dynamo, "torchscript": by_torchscript}
_MIXERS: Mapping[str, Callable[[], nn.Module]] = {
    "v2": lambda: PoM(8, 3, 2, 1, 1),
    "heads": lambda: PoM(8, 2, 2, 1, 4),
    "groups": lambda: PoM(8, 3, 2, 2, 1, bias=True),
    "separate": lambda: SeparatePoM(8, 4, 1, 1, 1),
    "v1": lambda: ProductPoM(8, 3, 1),
    "grouped v1": lambda: ProductPoM(8, 2, 1, 2),
    "rotary": lambda: RotaryPoM(8, 2, 2, 1200),
}
_MASKS: Mapping[str, tuple[str | None, Tensor | None]] = {
    "none": (None, None),
    "causal": ("causal", None),
    "padding": (None, torch.ones(2, 5, dtype=torch.bool)),
    "weights": (None, torch.ones(2, 5)),
    "full": (None, torch.ones(2, 5, 5, dtype=torch.bool)),
}
_MODES = {"none": "mean", "causal": "causal", "padding": "mean", "weights": "mean", "full": "features"}
_FEW = {("v2", "causal", "torchscript"), ("heads", "padding", "torchscript"), ("grouped v1", "none", "torchscript"),
        ("v2", "none", "dynamo"), ("rotary", "causal", "torchscript"), ("v1", "full", "torchscript")}  # fmt: skip


@pytest.mark.parametrize(
    ("mixer", "mask", "exporter"),
    [
        pytest.param(*case, marks=[] if case in _FEW else [pytest.mark.slow])
        for case in [(mixer, mask, exporter) for mixer in _MIXERS for mask in _MASKS for exporter in _EXPORTERS]
    ],
)
def test_what_torch_exports(mixer: str, mask: str, exporter: str, tmp_path: Path) -> None:
    kind, given = _MASKS[mask]
    torch.manual_seed(0)
    module = Masked(_MIXERS[mixer](), kind).eval()
    inputs = {"x": torch.randn(2, 5, 8), **({} if given is None else {"mask": given})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _EXPORTERS[exporter](module, inputs, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left, result.checked) == (1, [], _PATHS)
    (node,) = ours(tmp_path / "out.onnx")
    assert attribute(node, "mode") == _MODES[mask]
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (made,) = pom_export.inference_session(tmp_path / "out.onnx").run(None, feed)
    np.testing.assert_allclose(made, module(**inputs).detach().numpy(), rtol=1e-4, atol=1e-5)


class FactorsApart(nn.Module):
    """A causal version 1 mixer whose factors have projections of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ModuleList([nn.Linear(8, 6) for _ in range(3)])
        self.gate, self.last = nn.Linear(8, 18), nn.Linear(18, 8)

    def forward(self, x: Tensor) -> Tensor:
        running = [nn.functional.gelu(self.factors[0](x))]
        for factor in list(self.factors)[1:]:
            running.append(running[-1] * nn.functional.gelu(factor(x)))
        means = torch.cat(running, -1).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
        y: Tensor = self.last(torch.sigmoid(self.gate(x)) * means)
        return y


@pytest.mark.parametrize("exporter", ["torchscript", pytest.param("dynamo", marks=pytest.mark.slow)])
def test_factors_with_projections_of_their_own(exporter: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _EXPORTERS[exporter](FactorsApart().eval(), {"x": torch.randn(2, 5, 8)}, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left, result.checked) == (1, [], _PATHS)
    (node,) = ours(tmp_path / "out.onnx")
    assert (node.op_type, attribute(node, "degree"), attribute(node, "mode")) == (contract.GATED_OP_NAME, 3, "causal")
    before, after = onnx.load(tmp_path / "plain.onnx").graph, onnx.load(tmp_path / "out.onnx").graph
    kept = {each.name: each.raw_data for each in after.initializer}
    assert all(kept[each.name] == each.raw_data for each in before.initializer if len(each.dims) > 1)
