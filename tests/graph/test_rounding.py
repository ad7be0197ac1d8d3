"""The rounding errors of half precision are computed from the module alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.graph.rounding import RoundedModule, Rounding

X = torch.linspace(-2, 2, 48, dtype=torch.float64).reshape(1, 3, 16)


class Positions(nn.Module):
    """Adds a row of a table, and the angle of a position, to each token."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("table", torch.linspace(0.1, 0.9, 16))

    def forward(self, x: Tensor) -> Tensor:
        angles = (torch.arange(3) + 10_001).to(x.dtype)[:, None] * 0.37
        return self.linear(x * self.table) + angles.cos()


def rounded(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.bfloat16).double()


@torch.no_grad()
def test_weights_alone_are_rounded() -> None:
    module = Positions()
    found = RoundedModule(module, Rounding("bfloat16", {"linear.bias"}), values=False)(X)
    angles = (torch.arange(3).double()[:, None] + 10_001) * 0.37
    product = (X * rounded(module.table)) @ rounded(module.linear.weight).T
    torch.testing.assert_close(found, product + module.linear.bias.double() + angles.cos(), rtol=1e-12, atol=1e-12)
    assert module.linear.weight.dtype == torch.float32


@torch.no_grad()
def test_positions_are_not_rounded_and_values_are() -> None:
    """bfloat16's 8 bits cannot represent a position of 10,001."""
    module = Positions()
    found = RoundedModule(module, Rounding("bfloat16"), values=True)(X)
    torch.testing.assert_close(found, rounded(found), rtol=0, atol=0)
    exact = module.double()(X)
    assert 0 < (found - exact).abs().max() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_mixers_polynomial_and_state_are_exact(precision: str) -> None:
    mixer = pom_export.PolynomialMixer(16, 3, 2).eval()
    every = {name for name, _ in mixer.named_parameters()} - {"po_coeff"}
    found = RoundedModule(mixer, Rounding(precision, every), values=False)(X)
    torch.testing.assert_close(found, mixer.double()(X), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_what_leaves_the_range_stays_finite() -> None:
    linear = nn.Linear(16, 1, bias=False)
    linear.weight.fill_(1e4)
    assert RoundedModule(linear, Rounding("float16"), values=True)(10 * X.abs()).isfinite().all()


@torch.no_grad()
def test_a_convolution_with_a_bias_is_rounded_as_others_are() -> None:
    conv = nn.Conv1d(16, 4, 1)
    found = RoundedModule(conv, Rounding("bfloat16", {"bias"}), values=False)(X.mT)
    expected = nn.functional.conv1d(X.mT, rounded(conv.weight), conv.bias.double())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


class Turned(nn.Module):
    """Scales tokens, and rotates them by the cosine of their positions, which a graph computes in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.arange(x.shape[1])[:, None].double().cos() * 0.3


@torch.no_grad()
def test_what_meets_positions_is_computed_in_float32() -> None:
    torch.testing.assert_close(
        RoundedModule(Turned(), Rounding("bfloat16"), values=True)(X), Turned()(X), rtol=0, atol=0
    )


@torch.no_grad()
def test_what_is_made_of_sizes_alone_is_rounded_where_a_graph_holds_it() -> None:
    """Given positions are used when the graph runs, whatever is folded."""
    angles = torch.arange(3)[:, None].double().cos()
    folded = RoundedModule(Turned(), Rounding("bfloat16", sizes_folded=True), values=False)
    factor = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(folded(X), X * rounded(angles) * rounded(factor), rtol=0, atol=0)

    class Given(nn.Module):
        def forward(self, x: Tensor, positions: Tensor) -> Tensor:
            return x * positions[:, None].double().cos()

    given = RoundedModule(Given(), Rounding("bfloat16", sizes_folded=True), values=False)
    torch.testing.assert_close(given(X, torch.arange(3)), X * angles, rtol=0, atol=0)
