"""Read the file formats of weights. Nothing in a file is ever run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pom_export.checkpoint.foreign import HEAD, check_file, check_folder
from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT, read_archive, read_legacy
from pom_export.checkpoint.weight_set import is_average
from pom_export.errors import CheckpointError, reason_of
from pom_export.files import readable_file
from pom_export.json_text import parse_json

_ZIP, _PICKLE, _JSON = b"PK\x03\x04", b"\x80", b"{"
_LENGTH = 8  # bytes at the beginning of a safetensors file that contain its header's length
# Whole files come before indices of shards, in the order preferred by Hugging Face's loaders.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
# Files other than weights that trainers save.
_NO_WEIGHTS = re.compile(
    r"(^|[_.-])(optim(izer)?s?|sched(uler)?s?|rng_states?|random_states?|training_args|scaler|sampler|trainer_state)([_.-]|$)"
)
_CUSTOM = "custom_checkpoint_*.pkl"  # accelerate's: the user's objects, which may include averages of the weights
_SOME = 4
_COPY_HINT = "Copy or save it again"
# Far larger than any configuration, index of shards or header. Parsed JSON takes about twenty times as much memory.
_MOST_JSON = 4 << 20
_MOST_HEADER = 16 << 20
_MOST_IN_HEADER = 4_000_000
_NARROW = re.compile(r"[FIU][1-6](_|$)")  # F4, F6_E2M3, I4


def read_content(file: Path) -> tuple[Any, Mapping[str, str]]:
    """Return the contents of a file, with tensors mapped from the disk if the format allows, and its own metadata.

    The content determines the format, not the file's name.

    Raises:
        InputError: the file is missing, empty or unreadable.
        CheckpointError: it is truncated, of another format, or contains more than tensors.
    """
    readable_file(file, "checkpoint")
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    check_file(file, head)
    if head[_LENGTH : _LENGTH + 1] == _JSON:
        return _read_safetensors(file, int.from_bytes(head[:_LENGTH], "little"))
    if head[:4] == _ZIP:
        return read_archive(file), {}
    if head[:1] == _PICKLE:
        return read_legacy(file), {}
    raise CheckpointError(
        f"{file} is not a checkpoint: it starts with {head[:8]!r}", f"Expected .safetensors or .pt. {SAFE_FORMAT_HINT}"
    )


def files_of_folder(folder: Path) -> list[Path]:
    """Return the files with a folder's weights: those of Hugging Face's layout, or its only checkpoint.

    Raises:
        CheckpointError: the folder has no weights or several checkpoints, or an index lists a missing shard.
    """
    whole = _whole_file(folder)
    if whole is not None:
        return [whole]
    index = _index_of(folder)
    if index is not None:
        return _shards(index)
    check_folder(folder)
    names = _checkpoints_in(folder)
    inner = [place.name for place in sorted(folder.iterdir()) if place.is_dir() and _checkpoints_in(place)]
    models = [name for name in names if not _NO_WEIGHTS.search(name)]
    # A trainer may keep a link to its last checkpoint, so each file only counts once.
    places = [folder / name for name in (models or ([] if inner else names))]
    found = list({place.resolve(): place for place in places}.values())
    if len(found) == 1:
        return found
    hint = f"Give a file, or a folder with {' or '.join(_FOLDER_FILES)}"
    if found:
        listed = ", ".join(file.name for file in found[:_SOME]) + ", ..." * (len(found) > _SOME)
        raise CheckpointError(f"folder {folder} holds {len(found)} checkpoints ({listed})", hint)
    if inner:
        hint = f"Give one of the folders in it that do: {', '.join(inner[:_SOME])}{', ...' * (len(inner) > _SOME)}"
    raise CheckpointError(f"folder {folder} holds no weights", hint)


def check_index(folder: Path, files: Sequence[Path], parts: Sequence[Mapping[str, Any]]) -> None:
    """Compare the shards of a folder with their index, if there is one.

    Args:
        folder: the folder.
        files: the shards that were read.
        parts: the weights in each of them, by name.

    Raises:
        CheckpointError: a weight is not in the file that the index lists.
    """
    index = None if _whole_file(folder) is not None else _index_of(folder)
    if index is None:
        return
    named = read_json(index)["weight_map"]
    lying = {name: file.name for file, part in zip(files, parts, strict=True) for name in part}
    for name, file in named.items():
        if lying.get(name) != file:
            raise CheckpointError(
                f"{index} lists {name} in {file}, but it is in {lying.get(name, 'none of the files')}",
                "Files of two models may be mixed: copy or save all of them again",
            )


def _whole_file(folder: Path) -> Path | None:
    """Return the file that Hugging Face's loaders would prefer to an index; None if there is none."""
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            return None
    return None


def _index_of(folder: Path) -> Path | None:
    preferred = [file for name in _FOLDER_FILES if (file := folder / f"{name}.index.json").is_file()]
    if preferred:
        return preferred[0]
    indices = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.bin.index.json"))
    return indices[0] if len(indices) == 1 else None


def _checkpoints_in(folder: Path) -> list[str]:
    """Return the names of files that may be checkpoints, judged by these names."""
    try:
        return sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    except OSError:
        return []  # not readable


def files_beside(folder: Path, read: Sequence[Path]) -> list[str]:
    """Return the names of other files in a folder that may contain weights, without those of a trainer's state.

    They include folders whose names suggest averages.
    """
    names = [*_checkpoints_in(folder), *(file.name for file in folder.glob(_CUSTOM))]
    names += [place.name for place in folder.iterdir() if is_average(place.name) and _checkpoints_in(place)]
    return [name for name in sorted(names) if folder / name not in read and not _NO_WEIGHTS.search(name)]


def _shards(index: Path) -> list[Path]:
    content = read_json(index)
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise CheckpointError(f"{index} is not an index of shards: it has no map from weights to files", _COPY_HINT)
    names = sorted(set(named.values()))
    files = [index.parent / name for name in names if Path(name).name == name]
    if not files or len(files) < len(names):
        raise CheckpointError(f"{index} names no files, or files in other folders", _COPY_HINT)
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{index} names {missing[0]}, which is not there", "Copy every shard")
    return files


def read_json(file: Path) -> Any:
    """Return the contents of a small JSON file, such as a configuration or an index of shards.

    Raises:
        CheckpointError: it cannot be read, is larger than any such file, or is not JSON.
    """
    readable_file(file, "file")
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_JSON + 1)
        if len(content) > _MOST_JSON:
            raise CheckpointError(f"{file} is larger than {_MOST_JSON >> 20} MiB", "Correct it or move it away")
        # Hugging Face's configurations may contain infinite limits.
        return parse_json(content, infinite=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is not readable JSON: {reason_of(error)}", "Correct it or move it away"
        ) from error


def _read_safetensors(file: Path, header: int) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
    if header > _MOST_HEADER:
        raise CheckpointError(
            f"{file} declares a header of {header:,} bytes, but at most {_MOST_HEADER:,} are read", _COPY_HINT
        )
    try:
        with file.open("rb") as stream:
            stream.seek(_LENGTH)
            # Of two tensors with the same name, the library would use the last.
            declared = parse_json(stream.read(header), _MOST_IN_HEADER)
        _check_types(file, declared)
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, opened.metadata() or {}
    except CheckpointError:
        raise
    except Exception as error:  # from the library, or from torch for unknown types
        raise CheckpointError(f"{file} is not a complete safetensors file: {reason_of(error)}", _COPY_HINT) from error


def _check_types(file: Path, header: Any) -> None:
    """Refuse types of less than eight bits, and others that torch lacks."""
    for name, entry in header.items() if isinstance(header, dict) else ():
        kind = entry.get("dtype") if isinstance(entry, dict) else None
        if isinstance(kind, str) and _NARROW.match(kind):
            raise CheckpointError(f"{file}: {name} is of type {kind}", "Save the weights in bfloat16 or wider")
