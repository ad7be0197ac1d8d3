"""Name unsupported kinds of checkpoints, and how to convert each to a supported one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pom_export.checkpoint.pickles import SAFE_FORMAT_HINT
from pom_export.checkpoint.quantized import CONFIG_HINT
from pom_export.checkpoint.storages import BEFORE_QUANTIZING
from pom_export.errors import CheckpointError
from pom_export.files import mistaken_for

HEAD: Final = 512
"""How many bytes at the beginning of a file identify its format."""

_JOIN_DISTRIBUTED: Final = (
    "Join it into one file: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} checkpoint.pt"
)
_JOIN_DEEPSPEED: Final = "Join it into one file: python zero_to_fp32.py {folder} OUTPUT, the script that lies beside it"
_TO_TORCH: Final = "Load it with the library that wrote it, and save a PyTorch state dict"
_NAME_ONE: Final = "Give the folder or file of one model in it"
_NUMPY: Final = "a NumPy archive"


@dataclass(frozen=True)
class _Kind:
    """A kind of checkpoint that is not supported.

    Attributes:
        what: description of the kind.
        hint: what to do about it; may refer to the {folder}.
        matches: returns whether the names of a folder's files are of this kind.
    """

    what: str
    hint: str
    matches: Callable[[set[str]], bool]


def _any(*patterns: str) -> Callable[[set[str]], bool]:
    joined = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return lambda names: any(joined.fullmatch(name) for name in names)


_FOLDERS: Final = (
    _Kind("a torch.distributed checkpoint", _JOIN_DISTRIBUTED, _any(r"\.metadata", r".*\.distcp")),
    _Kind(
        "a distributed DeepSpeed checkpoint",
        _JOIN_DEEPSPEED,
        _any(r"zero_to_fp32\.py", r".*_(model|optim)_states\.pt"),
    ),
    _Kind(
        "a Megatron-LM checkpoint with one file per rank",
        "Convert it with Megatron-LM's tools/checkpoint/convert.py into one state dict",
        _any(r"latest_checkpointed_iteration\.txt", r"mp_rank_\d+.*"),
    ),
    _Kind("an Orbax (JAX) checkpoint", _TO_TORCH, _any(r"_CHECKPOINT_METADATA", r"manifest\.ocdbt", r"_METADATA")),
    _Kind("a TensorFlow model", _TO_TORCH, _any(r"saved_model\.pb", r".*\.data-\d{5}-of-\d{5}", r"tf_model\.h5")),
    _Kind("a Flax (JAX) model", _TO_TORCH, _any(r"flax_model\.msgpack")),
    _Kind(
        "a peft adapter without its base model",
        "Merge the two: model.merge_and_unload().save_pretrained(FOLDER)",
        _any(r"adapter_config\.json"),
    ),
    _Kind("a diffusers pipeline of several models", _NAME_ONE, _any(r"model_index\.json")),
    _Kind("a llama.cpp model (GGUF)", BEFORE_QUANTIZING, _any(r".*\.gguf")),
)

_HEADS: Final = (
    (b"GGUF", "a llama.cpp model (GGUF)", BEFORE_QUANTIZING),
    (b"lmgg", "a llama.cpp model (GGML)", BEFORE_QUANTIZING),
    (b"tjgg", "a llama.cpp model (GGML)", BEFORE_QUANTIZING),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes them", _TO_TORCH),
    (b"\x93NUMPY", "a NumPy array", _TO_TORCH),
)
_SUFFIXES: Final = {
    ".onnx": ("an ONNX model, not a checkpoint", "Give the checkpoint that it was exported from"),
    ".engine": ("a TensorRT engine, not a checkpoint", "Give the checkpoint that its model was exported from"),
    ".plan": ("a TensorRT engine, not a checkpoint", "Give the checkpoint that its model was exported from"),
    ".npz": (_NUMPY, _TO_TORCH),
    ".keras": ("a Keras model", _TO_TORCH),
    ".msgpack": ("a Flax (JAX) checkpoint", _TO_TORCH),
    ".pb": ("a TensorFlow model", _TO_TORCH),
    ".tflite": ("a TensorFlow Lite model", _TO_TORCH),
    ".pte": ("an ExecuTorch program", SAFE_FORMAT_HINT),
}
_TAR: Final = slice(257, 262)
_MEMBER: Final = 30  # where the name of an archive's first member begins
_SHARD: Final = re.compile(r"-\d{5}-of-(\d{5})\.")

# Patterns in the names of a state dict whose weights are incomplete by themselves.
_NAMES: Final = (
    (re.compile(r"_packed_params"), "quantized by torch.ao.quantization (quantize_dynamic)", BEFORE_QUANTIZING),
    (
        re.compile(r"\.SCB$|\.absmax$|\.quant_map$|\.quant_state\.|\.weight_format$"),
        "quantized by bitsandbytes, and parts of them are missing",
        BEFORE_QUANTIZING,
    ),
    (re.compile(r"\.activation_post_process\.|\.weight_fake_quant\."), "prepared for quantization", BEFORE_QUANTIZING),
    (re.compile(r"\.qweight$|\.qzeros$"), "quantized by GPTQ or AWQ", BEFORE_QUANTIZING),
    (re.compile(r"\._\w+_qdata$"), "quantized by torchao, and its metadata is missing", BEFORE_QUANTIZING),
    (
        re.compile(r"\.weight_scale_inv$|\.scale_weight$"),
        "quantized, with scales beside them",
        BEFORE_QUANTIZING,
    ),
    (re.compile(r"\.weight\._(data|scale|shift)(\.|$)"), "quantized by optimum-quanto", BEFORE_QUANTIZING),
    (
        re.compile(r"\.weight_scale$"),
        "quantized, with scales beside them, and no config.json says how",
        CONFIG_HINT,
    ),
    (re.compile(r"\.W_q$"), "quantized by HQQ", BEFORE_QUANTIZING),
    (
        re.compile(r"(^|\.)_?flat_param(_\d+)?$"),
        "flattened by FullyShardedDataParallel, one file per rank",
        "Save with StateDictType.FULL_STATE_DICT, or torch.distributed.checkpoint and then dcp_to_torch",
    ),
)


def check_folder(folder: Path) -> None:
    """Refuse a folder of an unsupported kind, or one that contains such a folder.

    Raises:
        CheckpointError: with the kind and the remedy.
    """
    for place in (folder, *sorted(inner for inner in folder.iterdir() if inner.is_dir())):
        try:
            names = {inner.name for inner in place.iterdir()}
        except OSError:
            continue  # not readable
        for kind in _FOLDERS:
            if kind.matches(names):
                hint = kind.hint.format(folder=place)
                raise CheckpointError(f"{place} is {kind.what}, which is not supported", hint)


def check_file(file: Path, head: bytes) -> None:
    """Refuse a file of an unsupported kind.

    Args:
        file: the file, whose name may indicate the kind.
        head: its first `HEAD` bytes.

    Raises:
        CheckpointError: with the kind and the remedy.
    """
    if file.suffix == ".distcp" or file.name == ".metadata":
        hint = _JOIN_DISTRIBUTED.format(folder=file.parent)
        raise CheckpointError(f"{file} is one file of a torch.distributed checkpoint", hint)
    kinds = ((what, hint) for start, what, hint in _HEADS if head.startswith(start))
    if found := mistaken_for(head) or next(kinds, None):
        what, hint = found
        raise CheckpointError(f"{file} is {what}", hint)
    if head[_TAR] == b"ustar":
        raise CheckpointError(f"{file} is a tar archive, as NeMo and the oldest torch write them", "Unpack it first")
    if head.startswith(b"PK") and b".npy" in head[_MEMBER:]:
        raise CheckpointError(f"{file} is {_NUMPY}", _TO_TORCH)
    if file.suffix in _SUFFIXES:
        what, hint = _SUFFIXES[file.suffix]
        raise CheckpointError(f"{file} is {what}", hint)


def check_names(file: Path, names: Iterable[str]) -> None:
    """Refuse a state dict whose names show that its weights are quantized or flattened.

    Raises:
        CheckpointError: with the kind and the remedy.
    """
    for name in names:
        for pattern, what, hint in _NAMES:
            if pattern.search(name):
                raise CheckpointError(f"{file}: the weights are {what}: {name}", hint)


def check_trainer(file: Path, content: Mapping[Any, Any]) -> None:
    """Refuse a file that a trainer saved for one rank, without the weights.

    Raises:
        CheckpointError: with the kind and the remedy.
    """
    if {"ds_version", "ds_config"} & content.keys():
        raise CheckpointError(
            f"{file} is one file of a distributed DeepSpeed checkpoint, and does not hold the weights",
            _JOIN_DEEPSPEED.format(folder=file.parent),
        )


def check_whole(file: Path) -> None:
    """Refuse a file whose name shows that it is one of several files of a model.

    Raises:
        CheckpointError: with the folder to give instead.
    """
    found = _SHARD.search(file.name)
    if found and int(found[1]) > 1:
        raise CheckpointError(
            f"{file} is one of {int(found[1])} shards",
            f"Give the folder that holds the shards and their index: {file.parent}",
        )
