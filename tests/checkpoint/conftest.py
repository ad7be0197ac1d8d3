"""Fixtures of the checkpoint tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pom_export.mixer import PolynomialMixer, ProductMixer
from tests.weight_files import Tensors


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of two mixers, and the file with its exported program."""
    torch.manual_seed(0)
    model = nn.Sequential(PolynomialMixer(8, 2, 2), ProductMixer(8, 3, 1)).eval()
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    traced = torch.export.export(model, (torch.randn(2, 5, 8),), dynamic_shapes=({0: batch, 1: tokens},))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(traced, path)
    return model, path


@pytest.fixture
def raw() -> Tensors:
    torch.manual_seed(0)
    return PolynomialMixer(8, 3, 2).state_dict()
