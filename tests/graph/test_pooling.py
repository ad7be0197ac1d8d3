"""Adaptive pooling and splits of a dynamic dimension are right at every size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pom_export
from pom_export.graph.pooling import _pool


class Pooled(nn.Module):
    """Pools over tokens in many ways."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = pom_export.PolynomialMixer(8, 2, 1)
        self.pool = nn.AdaptiveAvgPool1d(1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.mixer(x) + x
        return {
            "one": self.pool(y.mT),
            "bins": functional.adaptive_avg_pool1d(y.mT, 3),
            "both": functional.adaptive_avg_pool2d(y[:, None], (2, 3)),
            "tokens": functional.adaptive_avg_pool2d(y, (4, None)),
            "best": functional.adaptive_max_pool1d(y.mT, 3),
            "half": y.tensor_split(2, dim=1)[0],
            "rows": torch.unsafe_chunk(torch.cat([y, y]), 2)[1],
        }


@pytest.mark.slow
def test_a_file_takes_any_size(tmp_path: Path) -> None:
    result = pom_export.export(Pooled().eval(), tmp_path / "m.onnx", example_inputs=(torch.randn(2, 6, 8),))
    (note,) = result.notes
    assert note.startswith("tokens must be at least 1: at 0 PyTorch fails")
    assert result.checked


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("bins", [1, 2, 5])
def test_bins_are_those_of_torch(size: int, bins: int) -> None:
    x = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(0))
    for function in (functional.adaptive_avg_pool1d, functional.adaptive_max_pool1d):
        wanted = function(x, bins)
        found = _pool(x, -1, bins, average=function is functional.adaptive_avg_pool1d)
        torch.testing.assert_close(found, wanted)
