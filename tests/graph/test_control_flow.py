"""Branches that torch.cond takes, with mixers inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pom_export
from tests.official_style import PoM


class Branching(nn.Module):
    """One of two mixers, by the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = pom_export.PolynomialMixer(8, 2, 1), PoM(8, 2, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.one, lambda a: 2 * self.two(a), (x,))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on the way to its compiler
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_both_branches_are_in_the_file(tmp_path: Path) -> None:
    model, x = Branching().eval(), torch.randn(2, 5, 8).abs()
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert result.aggregations == 2
    session = pom_export.inference_session(tmp_path / "m.onnx")
    for given, wanted in ((x, model.one(x)), (-x, 2 * model.two(-x))):
        (y,) = session.run(None, {"x": given.numpy()})
        np.testing.assert_allclose(y, wanted.detach(), atol=1e-5)
