"""Triangular masks that users write become the op's causal mode; others stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export import contract
from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryPolynomialMixer, polynomial_aggregation
from pom_export.mixer.aggregation import Polynomial, aggregate
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS

Mask = Callable[[Tensor], Tensor]
NEGATIVE = float("-inf")


class Masked(nn.Module):
    """A mixer under the mask that a function makes of the tokens."""

    def __init__(self, mixer: nn.Module, mask: Mask) -> None:
        super().__init__()
        self.mixer = mixer
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x, None, self.mask(x))


class Aggregated(nn.Module):
    """What a mixer does with its mask, without its projections and its gate."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.randn(8, 2))
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return aggregate(x, Polynomial(self.coefficients), self.mask(x))[0]


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1])


TABLE = torch.tril(torch.ones(1, 64, 64))
CAUSAL: dict[str, Mask] = {
    "tril": lambda x: torch.tril(ones(x)).unsqueeze(0),
    "expanded to the batch": lambda x: torch.tril(ones(x)).expand(x.shape[0], -1, -1),
    "bool": lambda x: torch.tril(ones(x)).bool()[None],
    "not triu": lambda x: ~torch.triu(ones(x), diagonal=1).bool()[None],
    "a slice of a table": lambda x: TABLE[:, : x.shape[1], : x.shape[1]],
}
OTHER: dict[str, Mask] = {
    "a diagonal more": lambda x: torch.tril(ones(x), diagonal=1)[None],
    "without the diagonal": lambda x: torch.tril(ones(x), diagonal=-1)[None],
    "upper": lambda x: torch.triu(ones(x))[None],
    "a window": lambda x: (torch.tril(ones(x)) * torch.triu(ones(x), diagonal=-2))[None],
    "halves": lambda x: torch.tril(0.5 * ones(x))[None],
    # Positive weights, since a sum close to 0 would be divided by.
    "of the tokens": lambda x: torch.tril((x @ x.transpose(1, 2)).abs()),
    "all ones, spread": lambda x: torch.ones(1, 1, 1).expand(x.shape[0], x.shape[1], x.shape[1]),
    "all ones": lambda x: ones(x)[None],
    "another corner of a table": lambda x: TABLE[:, 1 : x.shape[1] + 1, : x.shape[1]],
}
FEW = ("a diagonal more", "upper", "halves", "of the tokens", "another corner of a table")
MIXERS = [PolynomialMixer(8, 2, 2), ProductMixer(8, 2, 2), RotaryPolynomialMixer(8, 2, 2, max_seq_len=64)]


class All(nn.Module):
    """Modules side by side, so that all are traced at once."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules.values())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)


def export(modules: Mapping[str, nn.Module], path: Path) -> dict[str, str]:
    """Export, check other sizes than the example's, and return the mode of each module's aggregation."""
    torch.manual_seed(0)
    module = All(modules).eval()
    pom_export.export(module, path, example_inputs=(torch.randn(2, 9, 8),))
    check_outputs(module, modules, path)
    return modes(modules, path)


def check_outputs(module: nn.Module, names: Iterable[str], path: Path) -> None:
    x = torch.randn(3, 21, 8)
    outputs = pom_export.inference_session(path).run(None, {"x": x.numpy()})
    with torch.no_grad():
        for name, y, expected in zip(names, outputs, module(x), strict=True):
            assert difference(y, expected.numpy().astype(np.float64), MODELS["float32"]), name


def modes(modules: Mapping[str, nn.Module], path: Path) -> dict[str, str]:
    """Return the mode of each module's aggregation."""
    nodes = [node for node in onnx.load(path).graph.node if node.domain == contract.DOMAIN]
    parts = [node.name.split(".")[1].partition("/")[0] for node in nodes]
    found = [a.s.decode() for node in nodes for a in node.attribute if a.name == "mode"]
    assert sorted(parts) == sorted(map(str, range(len(modules))))
    by_part = dict(zip(parts, found, strict=True))
    return {name: by_part[str(i)] for i, name in enumerate(modules)}


def test_a_lower_triangle_of_ones_is_causal(tmp_path: Path) -> None:
    masked = {name: Aggregated(mask) for name, mask in CAUSAL.items()}
    assert export(masked, tmp_path / "m.onnx") == dict.fromkeys(CAUSAL, "causal")
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "Trilu" not in operators


@pytest.mark.slow
def test_every_family_is_recognised(tmp_path: Path) -> None:
    masked = {type(mixer).__name__: Masked(mixer, CAUSAL["tril"]) for mixer in MIXERS}
    assert export(masked, tmp_path / "m.onnx") == dict.fromkeys(masked, "causal")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_recognised_too(dtype: str, tmp_path: Path) -> None:
    masked = {type(mixer).__name__: Masked(mixer, CAUSAL["tril"]) for mixer in MIXERS[:2]}
    example = torch.randn(2, 9, 8)
    pom_export.export(All(masked).eval(), tmp_path / "m.onnx", example_inputs=(example,), dtype=dtype)
    assert modes(masked, tmp_path / "m.onnx") == dict.fromkeys(masked, "causal")


class Divided(nn.Module):
    """Features summed under a triangular mask, and divided by something other than the mask's sums."""

    def __init__(self, divisor: Mask) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.randn(8, 2))
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tril(ones(x))[None]
        features = polynomial_aggregation(x, self.coefficients, None, "features")
        return (mask @ features) / self.divisor(mask)


DIVISORS: dict[str, Mask] = {
    "3 more": lambda mask: mask.sum(-1, keepdim=True) + 3,
    "twice as much": lambda mask: mask.sum(-1, keepdim=True) + mask.sum(-1, keepdim=True),
    "sums of columns": lambda mask: mask.sum(1, keepdim=True).transpose(1, 2),
    "chosen by the mask": lambda mask: torch.where(mask[..., :1] > 0, 7.0, mask.sum(-1, keepdim=True)),
}


def test_another_divisor_is_no_mean(tmp_path: Path) -> None:
    divided = {name: Divided(divisor) for name, divisor in DIVISORS.items()}
    assert export(divided, tmp_path / "m.onnx") == dict.fromkeys(DIVISORS, "features")


@pytest.mark.parametrize("names", [FEW, pytest.param(list(OTHER), marks=pytest.mark.slow)], ids=["few", "all"])
def test_another_mask_is_not(names: Sequence[str], tmp_path: Path) -> None:
    masked = {name: Aggregated(OTHER[name]) for name in names}
    assert export(masked, tmp_path / "m.onnx") == dict.fromkeys(names, "features")
