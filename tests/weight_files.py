"""Files with several sets of weights, and a check of which one was loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pom_export.checkpoint import LoadedModel, load_model

Tensors = dict[str, Tensor]
FACTOR = 0.5


def scaled(tensors: Tensors, factor: float = FACTOR) -> Tensors:
    return {name: tensor * factor for name, tensor in tensors.items()}


def load(content: Any, folder: Path, weights: str | None = None, **hints: Any) -> LoadedModel:
    torch.save(content, folder / "m.pt")
    return load_model(folder / "m.pt", weights=weights, **hints)


def factor_of(loaded: LoadedModel, raw: Tensors) -> float:
    """Return how many times as large as the raw ones a model's weights are."""
    state = loaded.module.state_dict()
    name = next(name for name in raw if name.endswith("ag_proj.weight"))
    factor = float((state[name] / raw[name]).mean())
    assert all(torch.allclose(state[name], raw[name] * factor) for name in raw if "inv_freq" not in name)
    return round(factor, 6)
