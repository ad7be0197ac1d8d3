"""What a checkpoint that is taken holds: the same to us as to the readers of the libraries that wrote it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def difference(file: Path) -> str:
    """Return how our reading of a checkpoint differs from another's, nothing where it does not.

    Where the other refuses the file, ours is judged by nothing: it keeps apart, and never runs, what torch.load
    would have to run.
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
            continue  # without its prefix; the names themselves are for other tests
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            return f"{name[:60]!r} is {tuple(tensor.shape)} {tensor.dtype}, not {tuple(other.shape)} {other.dtype}"
        if not torch.equal(other, tensor):
            return f"{name[:60]!r} has other values"
    return "" if ours.keys() & others.keys() else "no name is the same"


def _others(file: Path) -> Mapping[str, Any] | None:
    """Return the tensors that torch or safetensors reads, of dicts in the dict too; None where they refuse."""
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
