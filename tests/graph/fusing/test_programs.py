"""A torch.export program of plain operators becomes a file with the op."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError
from pom_export.graph.exported_model import read_model
from tests.official_style import PoM, ProductPoM


class Causal(nn.Module):
    """A causal mixer between two projections."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer, self.last = mixer, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.mixer(x, mask="causal"))
        return y


def saved(module: nn.Module, path: Path) -> Path:
    sizes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}}
    torch.export.save(torch.export.export(module.eval(), (torch.randn(2, 5, 8),), dynamic_shapes=sizes), path)
    return path


@pytest.mark.parametrize(
    ("mixer", "dtype"),
    [
        pytest.param(PoM(8, 3, 2, 1, 4), "float32", id="v2"),
        pytest.param(ProductPoM(8, 2, 1), "float16", id="v1", marks=pytest.mark.slow),
    ],
)
def test_a_plain_program(mixer: nn.Module, dtype: str, tmp_path: Path) -> None:
    program = saved(Causal(mixer), tmp_path / "plain.pt2")

    result = pom_export.export(program, tmp_path / "out.onnx", dtype=dtype)

    assert result.aggregations == 1
    assert {"onnxruntime kernel", "onnxruntime function"} <= set(result.checked)
    assert result.notes == ["1 aggregation of plain operators became the op"]
    assert [each["mode"] for each in read_model(tmp_path / "out.onnx").attributes] == ["causal"]
    assert pom_export.verify(tmp_path / "out.onnx", checkpoint=program)


class TokensFirst(nn.Module):
    """A mixer of (N, B, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gate, self.last = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.leaky_relu(self.context(x), 0.01).clamp(-0.1, 6.0)
        counts = torch.arange(1, x.shape[0] + 1)[:, None, None]
        y: Tensor = self.last(torch.sigmoid(self.gate(x)) * (h + h * h).cumsum(0) / counts)
        return y


def test_tokens_first(tmp_path: Path) -> None:
    program = saved(TokensFirst(), tmp_path / "plain.pt2")

    result = pom_export.export(program, tmp_path / "out.onnx")

    assert result.notes == ["1 aggregation of plain operators became the op"]
    assert [each["mode"] for each in read_model(tmp_path / "out.onnx").attributes] == ["causal"]


class AlmostPoM(PoM):
    """A mixer with another upper clamp."""

    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: object = None) -> Tensor:  # noqa: ARG002
        weight, channels = self.qc_proj.weight, self.po_coeff.shape[0]
        h = nn.functional.leaky_relu(xq @ weight[:channels].T, 0.01).clamp(min=-0.1, max=5.0)
        p = sum(self.po_coeff[:, j] * h ** (j + 1) for j in range(self.order))
        assert isinstance(p, Tensor)
        y: Tensor = self.ag_proj(p.mean(1, keepdim=True) * xq @ weight[channels:].T)
        return y


@pytest.mark.slow
def test_a_program_without_a_mixer(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(x)

    with pytest.raises(InputError, match="none of its plain operators compute one"):
        pom_export.export(saved(Plain(), tmp_path / "a.pt2"), tmp_path / "out.onnx")
    with pytest.raises(InputError, match="is almost a mixer and stays as it is: its activation clamps at 5, not at 6"):
        pom_export.export(saved(Causal(AlmostPoM(8, 2, 1, 1, 1)), tmp_path / "b.pt2"), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()
