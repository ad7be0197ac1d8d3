"""Dynamic dimensions of a user's module get names that a person can use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

import pom_export
from pom_export.mixer import PolynomialMixer


class Cross(nn.Module):
    """Two inputs of different lengths, and a third with a size of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = PolynomialMixer(8, 2, 1)

    def forward(self, query: Tensor, context: Tensor, offsets: Tensor) -> Tensor:
        return self.mixer(query, context) + offsets.sum()


def test_dimensions_are_named_after_their_use_or_their_input(tmp_path: Path) -> None:
    inputs = (torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(3, 4))
    result = pom_export.export(Cross(), tmp_path / "m.onnx", example_inputs=inputs)
    assert result.inputs == [
        "query float32[batch, tokens, 8]",
        "context float32[batch, context_1, 8]",
        "offsets float32[offsets_0, offsets_1]",
    ]
    assert result.outputs == ["y float32[batch, tokens, 8]"]


def test_sizes_that_the_user_fixes_stay_numbers(tmp_path: Path) -> None:
    model = nn.Sequential(PolynomialMixer(8, 2, 1), nn.Flatten(), nn.Linear(40, 3))
    shapes = {"input": {0: torch.export.Dim.AUTO}}
    inputs = (torch.randn(2, 5, 8),)
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=inputs, dynamic_shapes=shapes)
    assert result.inputs == ["input float32[batch, 5, 8]"]
