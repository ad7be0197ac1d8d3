"""Compares our reading of an accepted checkpoint with that of the libraries that write the format."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def difference(file: Path) -> str:
    """Return how our reading of a checkpoint differs from that of torch or safetensors; empty if it does not.

    If the other reader refuses the file, there is nothing to compare with: our reader sets aside, and never runs, what
    torch.load would have to run.
    """
    import torch

    from pom_export.checkpoint.reader import read_checkpoint

    ours = read_checkpoint(file).tensors
    others = _others(file)
    if others is None:
        return ""
    for name, tensor in ours.items():
        other = others.get(name)
        if other is None:
            continue  # our reader has removed a prefix; other tests check the names
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            return f"{name[:60]!r} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(other.shape)} {other.dtype}"
        if not torch.equal(other, tensor):
            return f"{name[:60]!r} has other values"
    return "" if ours.keys() & others.keys() else "no name is the same"


def _others(file: Path) -> Mapping[str, Any] | None:
    """Return the tensors that torch or safetensors reads, also from nested dicts; None if the file is refused."""
    import torch
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with file.open("rb") as stream:
                plain = stream.read(9)[8:] == b"{"
            content = load_file(os.fspath(file)) if plain else torch.load(file, weights_only=True)
    except Exception:  # noqa: BLE001 (whatever it raises)
        return None
    dicts = [content, *(value for value in content.values() if isinstance(value, Mapping))]
    return {name: value for one in dicts for name, value in one.items() if isinstance(value, torch.Tensor)}
