"""The file formats of weights. Nothing in a file is ever run."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT, read_pickle
from pom_export.errors import CheckpointError
from pom_export.files import readable_file

_ZIP, _PICKLE, _JSON = b"PK\x03\x04", b"\x80", b"{"
# Whole files, then indices of shards, in the order in which Hugging Face's loaders prefer them.
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")
_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")


def read_content(file: Path) -> tuple[Any, Mapping[str, str]]:
    """Return what a file holds, tensors mapped from the disk where the format allows, and its own metadata.

    The format is told by content, not by the file's name.

    Raises:
        InputError: the file is missing, empty or unreadable.
        CheckpointError: it is truncated, of another format, or holds more than tensors.
    """
    readable_file(file, "checkpoint")
    with file.open("rb") as stream:
        head = stream.read(16)
    if head[8:9] == _JSON:
        return _read_safetensors(file)
    if head[:4] == _ZIP:
        _refuse_programs(file)
        return read_pickle(file, archive=True), {}
    if head[:1] == _PICKLE:
        return read_pickle(file, archive=False), {}
    if file.suffix == ".onnx":
        raise CheckpointError(f"{file} is an ONNX model, not a checkpoint", "Name the file it was exported from")
    raise CheckpointError(
        f"{file} is not a checkpoint: it starts with {head[:8]!r}", f"Expected .safetensors or .pt. {SAFE_FORMAT_HINT}"
    )


def _refuse_programs(file: Path) -> None:
    """Raise CheckpointError for archives that hold a traced program instead of weights by name."""
    if not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file} is truncated: its archive has no end", "Copy or save it again")
    with zipfile.ZipFile(file) as archive:
        names = {name.split("/", 1)[-1] for name in archive.namelist()}
    if "archive_format" in names:
        raise CheckpointError(
            f"{file} is a program of torch.export, not a checkpoint", "`pom-export export` takes it; others don't"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{file} is a TorchScript program, not a checkpoint", SAFE_FORMAT_HINT)


def files_of_folder(folder: Path) -> list[Path]:
    """Return the files that hold a folder's weights: those of Hugging Face's layout, or its only checkpoint.

    Raises:
        CheckpointError: the folder holds no weights, or several checkpoints, or an index names a missing shard.
    """
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return _shards(folder / f"{name}.index.json")
    found = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.is_file())
    if len(found) == 1:
        return found
    what = f"holds {len(found)} checkpoints ({', '.join(f.name for f in found[:4])})" if found else "holds no weights"
    raise CheckpointError(f"folder {folder} {what}", f"Name a file, or a folder with {' or '.join(_FOLDER_FILES)}")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        files = [index.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of shards: {error!r}", "Copy or save it again") from error
    if not files or len(files) < len(names):
        raise CheckpointError(f"{index} names no files, or files of other folders", "Copy or save it again")
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{index} names {missing[0]}, which is not there", "Copy every shard")
    return files


def _read_safetensors(file: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}", "Copy or save it again") from error
