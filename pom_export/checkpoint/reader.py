"""Read a checkpoint's tensors, and what is known of it besides: from one file or from a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pom_export.checkpoint.formats import files_of_folder, read_content
from pom_export.checkpoint.hints import Hints, config_beside, hints_from, hints_in
from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert
from pom_export.errors import CheckpointError
from pom_export.files import sha256_of

# What trainers call the state dict, best first; DistributedDataParallel and torch.compile add to its names.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "module", "weights", "params", "ema", "model_ema")
_PREFIX, _COMPILED = "module.", "_orig_mod."
_MOST_WRAPPERS = 8
_TENSORS = (Tensor, OtherTensor)
_Entry = TypeVar("_Entry")
# Weights of so many bytes may repeat their values whatever the file's size.
_SMALL = 64 << 20
_FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it comes from.

    Attributes:
        path: the file or folder.
        tensors: the state dict, prefixes of wrappers removed; mapped from the disk where the format allows.
        sha256: of the file's bytes; of several shards, that of their digests, one a line.
        hints: what the file's metadata says, and the config.json beside it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str
    hints: Hints


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a state dict from a .safetensors file, torch.save's formats, or a folder of either, sharded or not.

    Raises:
        InputError: a file is missing, empty or unreadable.
        CheckpointError: it is truncated, of another format, holds more than tensors, or holds NaN or infinity.
    """
    place = Path(path)
    files = files_of_folder(place) if place.is_dir() else [place]
    tensors: dict[str, Tensor] = {}
    hints = Hints()
    for file in files:
        content, metadata = read_content(file)
        hints = hints.over(hints_from(metadata, f"{file}'s metadata"))
        hints = hints.over(hints_in(content))
        part = _without_wrappers(file, _state_dict(file, content))
        if twice := tensors.keys() & part.keys():
            raise CheckpointError(f"{file}: {sorted(twice)[0]} is in another shard too", "Save the model again")
        tensors |= _checked(file, part)
    return Checkpoint(place, tensors, _digest(files), hints.over(config_beside(files[0].parent)))


def _digest(files: Sequence[Path]) -> str:
    digests = [sha256_of(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _state_dict(file: Path, content: Any) -> dict[str, Tensor | OtherTensor]:
    """Return the state dict inside what was loaded, which may be a trainer's dict around it."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {_kind(content)}, not a state dict", SAFE_FORMAT_HINT)
    if not _is_state_dict(content):
        inner = [name for name, value in content.items() if isinstance(value, Mapping) and _is_state_dict(value)]
        inner.sort(key=lambda name: _WRAPPERS.index(name) if name in _WRAPPERS else len(_WRAPPERS))
        odd = next((name for name, value in content.items() if not isinstance(value, _TENSORS)), None)
        if not inner and odd is not None and any(isinstance(value, _TENSORS) for value in content.values()):
            raise CheckpointError(f"{file}: entry {odd!r} is a {_kind(content[odd])}, not a tensor", SAFE_FORMAT_HINT)
        if not inner:
            raise CheckpointError(f"{file} holds no state dict{_entries(content)}", SAFE_FORMAT_HINT)
        content = content[inner[0]]
    return dict(content)


def _is_state_dict(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(
        isinstance(name, str) and isinstance(value, _TENSORS) for name, value in content.items()
    )


def _kind(value: Any) -> str:
    """Return what a value is."""
    if isinstance(value, Inert):
        return f"pickled {value.name}, and what is pickled is never run"
    return type(value).__name__


def _entries(content: Mapping[Any, Any]) -> str:
    if {"state", "param_groups"} <= content.keys():
        return ", but an optimizer's state"
    kinds = [f"{name} ({_kind(value)})" for name, value in content.items() if isinstance(name, str)][:6]
    return f"; its entries are {', '.join(kinds)}" if kinds else ": it holds no tensors by name"


def _without_wrappers(file: Path, tensors: dict[str, _Entry]) -> dict[str, _Entry]:
    """Take off what torch.compile adds anywhere in a name, and DistributedDataParallel in front of every name."""
    plain = {name: name.replace(_COMPILED, "") for name in tensors}
    for _ in range(_MOST_WRAPPERS):
        if not all(name.startswith(_PREFIX) for name in plain.values()):
            break
        plain = {name: inner.removeprefix(_PREFIX) for name, inner in plain.items()}
    if len(set(plain.values())) < len(plain):
        twice = next(name for name, count in Counter(plain.values()).items() if count > 1)
        raise CheckpointError(f"{file} holds {twice} twice, with prefixes and without", "Save one of them")
    return {plain[name]: value for name, value in tensors.items()}


def check_types(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for integers and complex numbers: of a recognised model no weight is one."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(f"{checkpoint.path}: {name} is {tensor.dtype}", "Weights must be floating point")


def _checked(file: Path, entries: Mapping[str, Tensor | OtherTensor]) -> dict[str, Tensor]:
    """Return weights that have values of their own, no more than the file has room for, all of them finite."""
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if isinstance(entry, OtherTensor):
            raise CheckpointError(f"{file}: {name} is {entry.kind}", "Save it dense, with its values")
        if not entry.numel():
            raise CheckpointError(f"{file}: {name} of shape {tuple(entry.shape)} holds no values", "Is it whole?")
        tensors[name] = entry
    views = {_view(tensor): tensor for tensor in tensors.values()}
    claimed, room = sum(tensor.nbytes for tensor in views.values()), 2 * file.stat().st_size + _SMALL
    if claimed > room:
        raise CheckpointError(
            f"{file} claims {claimed:,} bytes of weights, for which it is too small: they repeat their values",
            "Save them contiguous: tensor.clone()",
        )
    finite = {view: int((~torch.isfinite(tensor)).sum()) for view, tensor in views.items() if _has_values(tensor)}
    for name, tensor in tensors.items():
        if bad := finite.get(_view(tensor), 0):
            raise CheckpointError(
                f"{file}: {name} holds {bad} NaN or infinite of {tensor.numel()} values", "The training diverged?"
            )
    return tensors


def _view(tensor: Tensor) -> tuple[Any, ...]:
    """Return what makes two tensors one: names may share it, and it is looked at once."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _has_values(tensor: Tensor) -> bool:
    """Return whether torch can tell if values of this type are finite; others are refused by `check_types`."""
    return tensor.dtype in _FLOAT_TYPES or tensor.is_complex()
