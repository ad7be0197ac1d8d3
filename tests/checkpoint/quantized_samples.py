"""The checkpoints in tests/data/quantized, which other libraries quantized, and changes to them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pom_export.checkpoint import load_model
from pom_export.errors import CheckpointError

DATA = Path(__file__).parents[1] / "data" / "quantized"
_EXPECTED = ".expected.safetensors"
NAMES = sorted(file.name.removesuffix(_EXPECTED) for file in DATA.glob(f"*{_EXPECTED}"))
# Kinds of layers that quantize their input as well.
WITH_INPUTS = ("dynamic", "bitsandbytes-int8", "compressed-int8-asymmetric", "compressed-float8")


def expected(name: str) -> dict[str, Tensor]:
    return load_file(DATA / f"{name}{_EXPECTED}")


def stored(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a sample that holds plain tensors only."""
    file = DATA / name / "model.safetensors" if (DATA / name).is_dir() else DATA / name
    if file.suffix == ".pt":
        return torch.load(file, weights_only=True), {}
    with safe_open(file, framework="pt") as opened:
        return load_file(file), opened.metadata() or {}


def refusal(path: Path, **hints: int) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(path, **hints)
    message = str(caught.value)
    assert caught.value.hint
    assert "\n" not in message
    return message


def with_config(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Copy a folder, with a change to the `quantization_config`."""
    shutil.copytree(DATA / name, folder / "m")
    file = folder / "m" / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))
    return folder / "m"


def also(**changed: Any) -> Callable[[dict[str, Any]], Any]:
    """Return a change that adds a second group of layers, whose weights are quantized a little differently."""

    def change(config: dict[str, Any]) -> None:
        config["config_groups"]["group_1"] = copy.deepcopy(config["config_groups"]["group_0"])
        config["config_groups"]["group_1"]["weights"] |= changed

    return change
