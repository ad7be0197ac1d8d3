"""What an error blames if outputs differ: the model, a replaced mixer, or what comes after the mixers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pom_export.api.blaming import fault_hint
from pom_export.api.source import Source, load_source
from pom_export.graph.options import GraphOptions
from pom_export.parity.comparison import Difference
from tests.official_style import PoM

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
FAR = Difference(0.1, 0.1, 0.9, 1e-6)


class Offset(PoM):
    def forward(self, xq: Tensor, xc: Tensor | None = None, mask: Any = None) -> Tensor:
        return super().forward(xq, xc, mask) + 0.25


def source_of(*layers: nn.Module) -> Source:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    return load_source(model, GraphOptions(), example_inputs=(X,), hints={}, progress=lambda _: None)


def hint(source: Source, found: Difference = FAR) -> str:
    return fault_hint(source, {"input": X.numpy().astype(np.float64)}, found)


def mixer() -> PoM:
    return PoM(8, 2, 2, 1, 1)


def test_a_mixer_that_computes_something_else_is_named() -> None:
    text = hint(source_of(mixer(), Offset(8, 2, 2, 1, 1), mixer()))
    assert "1 was replaced by what the official class computes" in text
    assert "differ by 0.25" in text
    assert "mixers={Offset: adapter}" in text


def test_no_mixer_is_blamed_for_what_comes_after() -> None:
    text = hint(source_of(mixer()))
    assert "not in your mixers" in text
    assert "was replaced by" not in text


def test_infinities_come_from_half_precision_or_masked_rows() -> None:
    assert "half precision ends" in hint(source_of(mixer()), Difference(math.inf, math.inf, 0.0, 1e-6))


def test_a_model_that_draws_is_not_blamed_on_its_mixers() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    text = hint(source_of(Offset(8, 2, 2, 1, 1), Noise()))
    assert "PyTorch itself gives different outputs each time" in text
    assert "was replaced by" not in text
