"""Mixers with custom signatures, and adapters that users declare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.copying import copy_module
from pom_export.graph.replacing import replace_mixers
from tests.official_style import PoM

X = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


class Renamed(PoM):
    def forward(self, tokens: Tensor, *, mask: Any = None, context: Any = None, scale: float = 1.0) -> Tensor:
        return super().forward(tokens, context, mask) * scale


class PassedOn(PoM):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs)


class Keywords(PoM):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x, **kwargs)


class Lengths(PoM):
    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        keep = torch.arange(tokens.shape[1]) < lengths[:, None]
        return super().forward(tokens, None, keep)


def wide(kind: type[PoM]) -> nn.Module:
    torch.manual_seed(0)
    return copy_module(kind(8, 2, 2, 1, 1), torch.float64)


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (Renamed, lambda m: m(X)),
        (Renamed, lambda m: m(tokens=X, mask=KEEP)),
        (Renamed, lambda m: m(X, context=2 * X, scale=1.0)),
        (PassedOn, lambda m: m(X, None, KEEP)),
        (PassedOn, lambda m: m(xq=X, mask="causal")),
        (Keywords, lambda m: m(X, mask="causal", xc=3 * X)),
    ],
)
def test_a_custom_signature_is_kept(kind: type[PoM], call: Callable[[nn.Module], Tensor]) -> None:
    original = wide(kind)
    replaced = replace_mixers(copy_module(original)).module
    assert replaced is not original
    torch.testing.assert_close(call(copy_module(replaced)), call(original))


def test_an_argument_that_ours_does_not_have_is_refused_when_it_is_used() -> None:
    replaced = replace_mixers(wide(Renamed)).module
    with pytest.raises(InputError, match=r"Renamed is called with scale, .* mixers=\{Renamed: adapter\}"):
        replaced(X, scale=2.0)
    with pytest.raises(InputError, match="Keywords is called with other"):
        replace_mixers(wide(Keywords)).module(X, other=1)


def test_an_argument_that_ours_does_not_need_is_reported() -> None:
    result = replace_mixers(nn.Sequential(wide(Lengths)))
    assert result.replaced == []
    assert "its forward takes (tokens, lengths), the official one (xq, xc, mask)" in str(result.near_misses["0"])


def test_a_forward_that_was_replaced_is_reported() -> None:
    mixer = wide(PoM)
    mixer.forward = lambda x: 2 * x  # type: ignore[method-assign]
    assert "the forward of this PoM was replaced" in str(replace_mixers(nn.Sequential(mixer)).near_misses["0"])


class Own(nn.Module):
    """What a user may have written: a polynomial of degree 2, with other names."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.values = nn.Linear(width, channels, bias=False)
        self.gates = nn.Linear(width, channels)
        self.linear, self.square = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))
        self.out = nn.Linear(channels, width, bias=False)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        h = functional.leaky_relu(self.values(x)).clamp(min=-0.1, max=6.0)
        p = self.linear * h + self.square * h * h
        if keep is None:
            mean = p.mean(1, keepdim=True)
        else:
            mean = (p * keep[..., None]).sum(1, keepdim=True) / keep[..., None].sum(1, keepdim=True)
        return self.out(functional.hardsigmoid(self.gates(x)) * mean)


class Stack(nn.Module):
    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Own(8, 16), Own(8, 16)])
        self.masked = masked

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + (layer(x, keep) if self.masked else layer(x))
        return x * keep[..., None]


def ours(own: Own) -> pom_export.PolynomialMixer:
    mixer = pom_export.PolynomialMixer(dim=8, degree=2, expand=2)
    mixer.load_state_dict(
        {
            "qc_proj.weight": torch.cat([own.values.weight, own.gates.weight]),
            "se_bias": own.gates.bias,
            "po_coeff": torch.stack([own.linear, own.square], dim=1),
            "ag_proj.weight": own.out.weight,
        }
    )
    return mixer


class Kept(nn.Module):
    """A mixer behind the signature of a user's class."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.mixer(x, mask=keep)


@pytest.mark.parametrize(
    ("masked", "adapter"), [pytest.param(False, ours, marks=pytest.mark.slow), (True, lambda own: Kept(ours(own)))]
)
def test_an_adapter_says_what_a_users_class_computes(masked: bool, adapter: Any, tmp_path: Path) -> None:
    model, keep = Stack(masked).eval(), torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(X.float(), keep), mixers={Own: adapter})
    assert result.aggregations == 2
    assert type(model.layers[0]) is Own


def test_an_adapter_that_is_wrong_is_found_out(tmp_path: Path) -> None:
    def wrong(own: Own) -> nn.Module:
        mixer = ours(own)
        with torch.no_grad():
            mixer.po_coeff[:, 1] += 0.1
        return mixer

    with pytest.raises(ParityError, match=r"layers\.0 was replaced by .* differ by"):
        pom_export.export(
            Stack(False), tmp_path / "m.onnx", example_inputs=(X.float(), torch.ones(2, 5)), mixers={Own: wrong}
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mixers", "message"),
    [
        ({Own: lambda own: own.nothing}, "the adapter for Own .* fails"),
        ({Own: lambda own: own.out}, "returns a Linear without a mixer of ours"),
        ({nn.GRU: ours}, "an adapter for GRU, and the model contains no such module"),
        ({"Own": ours}, "mixers holds 'Own'"),
        ({Own: 3}, "mixers holds"),
    ],
)
def test_unused_adapters_are_reported(mixers: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(
            Stack(False), tmp_path / "m.onnx", example_inputs=(X.float(), torch.ones(2, 5)), mixers=mixers
        )


class Mine(nn.Module):
    """The example class of docs/own-modules.md."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.gates = nn.Linear(8, 16, bias=False), nn.Linear(8, 16)
        self.powers, self.out = nn.Parameter(torch.randn(16, 2)), nn.Linear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.leaky_relu(self.values(x)).clamp(min=-0.1, max=6.0)
        p = self.powers[:, 0] * h + self.powers[:, 1] * h**2
        return self.out(functional.hardsigmoid(self.gates(x)) * p.mean(1, keepdim=True))


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (Path(__file__).parents[2] / "docs" / "own-modules.md").read_text().split("```python\n")
    (block,) = (text.partition("```")[0] for text in blocks if text.startswith("def adapter("))
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    names = {"pom_export": pom_export, "torch": torch, "Mine": Mine, "x": X.float()}
    exec(block, {**names, "model": nn.Sequential(Mine()).eval()})
    assert (tmp_path / "model.onnx").is_file()
