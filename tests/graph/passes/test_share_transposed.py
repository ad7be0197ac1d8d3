"""Weights that the graph uses in both directions are stored once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.mixer import PolynomialMixer
from pom_export.models import GPT, GPTConfig


def stored(path: Path) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer}


@pytest.mark.slow
def test_a_tied_output_projection_is_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(97, 1, 2, 32, 2, 2, 2, 2, mlp_width=64)).eval()
    pom_export.export(model, tmp_path / "m.onnx")
    of_the_vocabulary = [name for name, shape in stored(tmp_path / "m.onnx").items() if 97 in shape]
    assert of_the_vocabulary in (["lm_head.weight"], ["transformer.wte.weight"])
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    assert (tmp_path / "m.onnx").stat().st_size < parameters + 20_000


class TwoProjections(nn.Module):
    """Two square weights, one the other's transpose, or not."""

    def __init__(self, equal: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 64)
        self.mixer = PolynomialMixer(64, 2, 1)
        self.project = nn.Linear(64, 64, bias=False)
        if equal:
            self.project.weight = nn.Parameter(self.embed.weight.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        return self.project(self.mixer(self.embed(ids)))


def test_equal_values_are_enough_and_near_ones_are_not(tmp_path: Path) -> None:
    for equal in (True, False):
        torch.manual_seed(0)
        model = TwoProjections(equal).eval()
        ids = torch.arange(12).reshape(2, 6)
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(ids,))
        squares = [shape for shape in stored(tmp_path / "m.onnx").values() if shape == (64, 64)]
        # Three are the mixer's: its output projection and the two parts of the other.
        assert len(squares) == (4 if equal else 5)
        (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"ids": ids.numpy()})
        np.testing.assert_allclose(y, model(ids).detach().numpy(), rtol=1e-4, atol=1e-5)
