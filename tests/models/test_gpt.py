"""The public language model's rotation: as exact in float32 as its frequencies, however long the sequence."""

from __future__ import annotations

import pytest
import torch

from pom_export.models.gpt import Rotary


@pytest.mark.parametrize("tokens", [1, 2048, 2049, 5000, 131_072])
def test_angles_are_exact_in_float32(tokens: int) -> None:
    rotary = Rotary(16)
    x = torch.ones(1, 1, tokens, 16)
    frequencies = rotary.inv_freq.double()
    angles = torch.outer(torch.arange(tokens, dtype=torch.float64), frequencies)
    expected = torch.cat([angles.cos() + angles.sin(), angles.cos() - angles.sin()], dim=-1)
    assert (rotary(x)[0, 0] - expected).abs().max() < 3e-6
    # The plain product errs by 1e-4 from some thousand tokens on.
    plain = torch.outer(torch.arange(tokens).float(), rotary.inv_freq)
    assert tokens < 4096 or (plain.cos() - angles.cos()).abs().max() > 3e-5
