"""Read a checkpoint's tensors. Nothing in the file is ever run: pickles are read with `weights_only`."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pom_export.errors import CheckpointError
from pom_export.files import readable_file, sha256_of

# Trainers wrap the state dict; torch.compile and DistributedDataParallel prefix its keys.
_WRAPPERS = ("model", "state_dict", "model_state_dict")
_PREFIXES = ("_orig_mod.", "module.")
_FLOAT_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SAFE_FORMAT_HINT = "Save the state dict: torch.save(model.state_dict(), path), or safetensors.torch.save_file"


@dataclass(frozen=True)
class Checkpoint:
    """A state dict and where it comes from.

    Attributes:
        path: the file.
        tensors: the state dict, prefixes of wrappers removed.
        sha256: of the file's bytes.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a state dict from a .safetensors file or from torch.save's formats, told apart by content.

    Raises:
        InputError: the file is missing, a folder, empty or unreadable.
        CheckpointError: it is truncated, of another format, holds more than tensors, or holds NaN or infinity.
    """
    file = readable_file(path, "checkpoint")
    with file.open("rb") as stream:
        head = stream.read(16)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        content = _read_torch(file)
    elif head[8:9] == b"{":
        content = _read_safetensors(file)
    else:
        raise CheckpointError(
            f"{file} is not a checkpoint: it starts with {head[:8]!r}",
            f"Expected .safetensors or .pt. {_SAFE_FORMAT_HINT}",
        )
    tensors = _strip_prefixes(_state_dict(file, content))
    _check_values(file, tensors)
    return Checkpoint(file, tensors, sha256_of(file))


def _read_safetensors(file: Path) -> Mapping[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}", "Copy or save it again") from error


def _read_torch(file: Path) -> Any:
    try:
        # A stream, not a path: from a path torch goes by the file's suffix.
        with warnings.catch_warnings(), file.open("rb") as stream:
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error):
            raise CheckpointError(
                f"{file} holds pickled Python objects besides tensors, which are never run", _SAFE_FORMAT_HINT
            ) from error
        raise CheckpointError(f"{file} is damaged: {_first_line(error)}", "Copy or save it again") from error
    except Exception as error:  # whatever damaged bytes make of the parser
        raise CheckpointError(
            f"{file} is truncated or damaged: {_first_line(error)}", "Copy or save it again"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _state_dict(file: Path, content: Any) -> dict[str, Tensor]:
    """Return the state dict inside what was loaded, which may be a trainer's dict around it."""
    if isinstance(content, Mapping):
        wrapper = next((name for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        content = content if wrapper is None else content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, not a state dict", _SAFE_FORMAT_HINT)
    other = next((name for name, value in content.items() if not isinstance(value, Tensor)), None)
    if other is not None:
        kind = type(content[other]).__name__
        raise CheckpointError(f"{file}: entry {other!r} is a {kind}, not a tensor", _SAFE_FORMAT_HINT)
    if not content:
        raise CheckpointError(f"{file} holds no tensors", _SAFE_FORMAT_HINT)
    return {str(name): value for name, value in content.items()}


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _check_values(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors of integers, complex numbers, NaN or infinity: no PoM weight is one."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{file}: {name} is sparse, quantized or without data", "Save it dense")
        if tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(f"{file}: {name} is {tensor.dtype}", "Weights must be floating point")
        if bad := int((~torch.isfinite(tensor)).sum()):
            raise CheckpointError(
                f"{file}: {name} holds {bad} NaN or infinite of {tensor.numel()} values", "The training diverged?"
            )
