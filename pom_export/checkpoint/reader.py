"""Read a checkpoint's sets of weights and other information, from a file or a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from pom_export.checkpoint.choosing import asked_set, default_set
from pom_export.checkpoint.foreign import check_names, check_trainer, check_whole
from pom_export.checkpoint.formats import check_index, files_beside, files_of_folder, read_content
from pom_export.checkpoint.hints import Hints, hints_from
from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT
from pom_export.checkpoint.quantized import QuantizedTensor, gather, notes_on
from pom_export.checkpoint.settings import config_beside, quantization_beside, settings_in
from pom_export.checkpoint.storages import OtherTensor
from pom_export.checkpoint.unpickling import Inert
from pom_export.checkpoint.values import with_room
from pom_export.checkpoint.weight_set import WeightSet
from pom_export.checkpoint.weight_sets import find_sets, is_state_dict, saved_in_training, unread_averages
from pom_export.errors import CheckpointError, InputError, with_article
from pom_export.files import as_path, sha256_of

_TENSORS = (Tensor, OtherTensor, QuantizedTensor)


@dataclass(frozen=True)
class Checkpoint:
    """The sets of weights in a checkpoint, and their origin.

    Attributes:
        path: the file or folder.
        files: the files that contain the weights.
        sets: at least one; see `WeightSet`.
        hints: hints from the file's metadata and the config.json beside it.
        settings: hints from what a trainer saved with the weights.
        unread: keys of averages in an unsupported form.
        beside: for a folder: other files in it that may contain weights, and were not read.
        in_training: whether a schedule-free optimizer was in training mode, whose weights differ from those for
            evaluation.
    """

    path: Path
    files: Sequence[Path]
    sets: Sequence[WeightSet]
    hints: Hints
    settings: Hints
    unread: Sequence[str] = ()
    beside: Sequence[str] = ()
    in_training: bool = False

    @cached_property
    def sha256(self) -> str:
        """The file's hash; for several shards, the hash of their hashes, one per line."""
        digests = [sha256_of(file) for file in self.files]
        return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The default set's state dict."""
        return self.state_dict(self.choose())

    def choose(self, weights: str | None = None) -> WeightSet:
        """Return the set with a name, or the default set.

        Raises:
            InputError: the name is not text.
            CheckpointError: there is no such set, or the choice is ambiguous.
        """
        if weights is not None and not isinstance(weights, str):
            raise InputError(f"weights must be a name, got {weights!r}", 'Example: weights="ema"')
        if weights is None:
            return default_set(self.path, self.sets)
        return asked_set(self.path, self.sets, weights)

    def state_dict(self, chosen: WeightSet) -> dict[str, Tensor]:
        """Return a set's tensors by name, after checking their kinds and sizes.

        Their values are not read yet, except for quantized ones, so that even a huge file can be refused because of
        names and shapes.

        Raises:
            CheckpointError: an entry is not a tensor or has no plain values, or they claim more bytes than the file
                has.
        """
        named = chosen.tensors
        check_names(self.path, named)
        odd = next((name for name, value in named.items() if not isinstance(value, _TENSORS)), None)
        if odd is not None:
            raise CheckpointError(
                f"{self.path}: entry {odd!r} is {with_article(_kind(named[odd]))}, not a tensor", SAFE_FORMAT_HINT
            )
        return with_room(self.path, self._bytes, named)

    def values(self, chosen: WeightSet) -> list[Tensor]:
        """Return the tensors of a list without names; errors are those of `state_dict`."""
        numbered = {f"{chosen.path}[{number}]": value for number, value in enumerate(chosen.values or ())}
        return list(with_room(self.path, self._bytes, numbered).values())

    def notes_on(self, chosen: WeightSet) -> list[str]:
        """Return remarks about how a set's weights are stored, one sentence each."""
        return notes_on(chosen.tensors.values() if chosen.values is None else chosen.values)

    def dequantized(self, chosen: WeightSet) -> list[Tensor]:
        """Return those tensors of a state dict that were dequantized, as `state_dict` returns them."""
        return [entry.values for entry in chosen.tensors.values() if isinstance(entry, QuantizedTensor)]

    @property
    def _bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a .safetensors file, a file in one of torch.save's formats, or a folder of either, sharded or not.

    Raises:
        InputError: a file is missing, empty or unreadable.
        CheckpointError: it is truncated, of another format, or has no weights.
    """
    place = as_path(path, "checkpoint")
    if not place.is_dir():
        check_whole(place)
    files = files_of_folder(place) if place.is_dir() else [place]
    hints, settings = Hints(), Hints()
    contents = []
    described: dict[str, str] = {}
    for file in files:
        content, metadata = read_content(file)
        hints = hints.over(hints_from(metadata, f"{file}'s metadata"))
        settings = settings.over(settings_in(content))
        described |= metadata
        contents.append(_mapping(file, content))
    if place.is_dir() and all(map(is_state_dict, contents)):
        check_index(place, files, contents)
    whole = contents[0] if len(files) == 1 else _joined(files, contents)
    source = files[0] if len(files) == 1 else place
    gather(source, whole, described, quantization_beside(files[0].parent))
    sets = find_sets(source, whole)
    if not sets:
        check_trainer(files[0], contents[0])
        raise _no_weights(files[0], contents[0])
    unread = unread_averages(contents[0], sets)
    return Checkpoint(
        path=place,
        files=files,
        sets=sets,
        hints=hints.over(config_beside(files[0].parent)),
        settings=settings,
        unread=unread,
        beside=files_beside(place, files) if place.is_dir() else [],
        in_training=saved_in_training(contents[0]),
    )


def _joined(files: Sequence[Path], contents: Sequence[Mapping[Any, Any]]) -> dict[str, Any]:
    """Return the joined state dict of all shards."""
    tensors: dict[str, Any] = {}
    for file, content in zip(files, contents, strict=True):
        part = content if is_state_dict(content) else _only_set(file, content).tensors
        if twice := tensors.keys() & part.keys():
            raise CheckpointError(f"{file}: {sorted(twice)[0]} is in another shard too", "Save the model again")
        tensors |= part
    return tensors


def _only_set(file: Path, content: Mapping[Any, Any]) -> WeightSet:
    """Return the state dict that a shard contains under a key."""
    sets = find_sets(file, content)
    if not sets:
        raise _no_weights(file, content)
    return default_set(file, sets)


def _mapping(file: Path, content: Any) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds {with_article(_kind(content))}, not a state dict", SAFE_FORMAT_HINT)
    return content


def _no_weights(file: Path, content: Mapping[Any, Any]) -> CheckpointError:
    odd = next((name for name, value in content.items() if not isinstance(value, _TENSORS)), None)
    if odd is not None and any(isinstance(value, _TENSORS) for value in content.values()):
        return CheckpointError(
            f"{file}: entry {odd!r} is {with_article(_kind(content[odd]))}, not a tensor", SAFE_FORMAT_HINT
        )
    return CheckpointError(f"{file} holds no state dict{_entries(content)}", SAFE_FORMAT_HINT)


def _kind(value: Any) -> str:
    """Describe the kind of a value."""
    if isinstance(value, Inert) and value.name.startswith("torch.distributed"):
        return f"piece of a distributed tensor ({value.name})"
    if isinstance(value, Inert):
        return f"pickled {value.name}, and pickled objects are never executed"
    return type(value).__name__


def _entries(content: Mapping[Any, Any]) -> str:
    if {"state", "param_groups"} <= content.keys():
        return ", but an optimizer's state"
    kinds = [f"{name} ({_kind(value)})" for name, value in content.items() if isinstance(name, str)][:6]
    return f"; its entries are {', '.join(kinds)}" if kinds else ": it holds no tensors by name"
