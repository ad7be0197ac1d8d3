"""Checkpoints: every container, every golden case, and everything that must be refused with one clear line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pom_export.checkpoint import load_model
from pom_export.errors import InputError
from pom_export.mixer import MixerConfig, PolynomialMixer

GOLDEN_FOLDER = Path(__file__).parents[1] / "data" / "golden"
CASES = sorted(path.name for path in GOLDEN_FOLDER.glob("v2_*"))


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: tensor.clone() for name, tensor in PolynomialMixer(8, 3, 2, n_sel_heads=4).state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_official_checkpoints_are_recognised(case: str) -> None:
    expected = json.loads((GOLDEN_FOLDER / case / "config.json").read_text())
    config = load_model(GOLDEN_FOLDER / case / "checkpoint.pt").spec.config
    assert isinstance(config, MixerConfig)
    for name in ("dim", "degree", "expand", "n_groups", "bias"):
        assert getattr(config, name) == expected[name], name
    # 0 and 1 are one gate a channel, both.
    assert config.n_sel_heads == max(1, expected["n_sel_heads"])


def with_prefix(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in weights().items()}


@pytest.mark.parametrize(
    "save",
    [
        lambda path: torch.save(weights(), path),
        lambda path: torch.save(weights(), path, _use_new_zipfile_serialization=False),
        lambda path: save_file(weights(), path),
        lambda path: torch.save({"step": 3, "model": weights(), "optimizer": {"lr": 0.1}}, path),
        lambda path: torch.save({"state_dict": weights()}, path),
        lambda path: torch.save(with_prefix("_orig_mod."), path),
        lambda path: save_file(with_prefix("module._orig_mod."), path),
    ],
)
def test_every_container_gives_the_same_weights(save: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path / "checkpoint")
    loaded = load_model(tmp_path / "checkpoint")
    assert not loaded.module.training
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, weights()[name])


class Malicious:
    """Would write a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.marker),)


def changed(**values: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Return good weights with some replaced, or removed where None; `__` stands for a dot."""
    merged = {**weights(), **{name.replace("__", "."): value for name, value in values.items()}}
    return {name: value for name, value in merged.items() if value is not None}


def truncated(save: Callable[[Any, Path], None]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(weights(), path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return write


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "does not exist"),  # noqa: ARG005
    "folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "is empty"),
    "text": (lambda path: path.write_text("hello, this is no checkpoint"), "starts with b'hello"),
    "one byte": (lambda path: path.write_bytes(b"\x80"), "damaged"),
    "truncated zip": (truncated(torch.save), "damaged"),
    "truncated safetensors": (truncated(save_file), "safetensors"),
    "code": (lambda path: torch.save({"a": Malicious(path.parent / "marker")}, path), "never run"),
    "whole module": (lambda path: torch.save(PolynomialMixer(8, 3, 2), path), "never run"),
    "NaN": (lambda path: save_file(changed(se_bias=torch.tensor([0, torch.nan, 0, 0])), path), "se_bias holds 1 NaN"),
    "infinity": (lambda path: save_file(changed(se_bias=torch.full((4,), torch.inf)), path), "se_bias holds 4"),
    "integers": (lambda path: save_file(changed(se_bias=torch.ones(4, dtype=torch.int64)), path), "torch.int64"),
    "unknown key": (lambda path: save_file(changed(extra=torch.ones(1)), path), "unknown keys.*extra"),
    "missing key": (lambda path: save_file(changed(se_bias=None), path), "se_bias is missing"),
    "wrong shape": (lambda path: save_file(changed(qc_proj__weight=torch.ones(20, 9)), path), r"\(20, 9\)"),
    "wrong width": (lambda path: save_file(changed(po_coeff=torch.ones(17, 3)), path), "17 channels"),
    "degree 17": (lambda path: save_file(changed(po_coeff=torch.ones(16, 17)), path), "degree must be"),
    "another model": (lambda path: save_file({"conv1.weight": torch.ones(3)}, path), "conv1.weight"),
    "no dict": (lambda path: torch.save([1, 2], path), "a list"),
    "no tensors": (lambda path: torch.save({}, path), "no tensors"),
    "other entries": (lambda path: torch.save({"lr": 0.1}, path), "'lr' is a float"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_checkpoints_are_refused_in_one_clear_line(kind: str, tmp_path: Path) -> None:
    write, message = BAD[kind]
    write(tmp_path / "checkpoint")
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path / "checkpoint")
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "marker").exists(), "code in the pickle ran"
