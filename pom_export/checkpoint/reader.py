"""Read a checkpoint's tensors, and what is known of it besides: from one file or from a folder."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from pom_export.checkpoint.formats import files_of_folder, read_content
from pom_export.checkpoint.hints import Hints, config_beside, hints_from, hints_in
from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert
from pom_export.checkpoint.values import with_room
from pom_export.errors import CheckpointError
from pom_export.files import sha256_of

# What trainers call the state dict, best first; DistributedDataParallel and torch.compile add to its names.
_WRAPPERS = ("model", "state_dict", "model_state_dict", "net", "module", "weights", "params", "ema", "model_ema")
_PREFIX, _COMPILED = "module.", "_orig_mod."
_MOST_WRAPPERS = 8
_TENSORS = (Tensor, OtherTensor)
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it comes from.

    Attributes:
        path: the file or folder.
        files: those that hold the weights.
        tensors: the state dict, prefixes of wrappers removed; mapped from the disk where the format allows.
        hints: what the file's metadata says, and the config.json beside it.
    """

    path: Path
    files: Sequence[Path]
    tensors: Mapping[str, Tensor]
    hints: Hints

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes; of several shards, that of their digests, one a line."""
        digests = [sha256_of(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a state dict from a .safetensors file, torch.save's formats, or a folder of either, sharded or not.

    Its values are not looked at yet: a file may be refused by names and shapes, however large it is.

    Raises:
        InputError: a file is missing, empty or unreadable.
        CheckpointError: it is truncated, of another format, holds more than tensors, or claims more than it has.
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
        tensors |= with_room(file, part)
    return Checkpoint(place, files, tensors, hints.over(config_beside(files[0].parent)))


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
