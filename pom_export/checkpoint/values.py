"""Check the values of weights: as many as the file has room for, finite, and of a floating-point type."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.quantized import LayoutError, QuantizedTensor
from pom_export.checkpoint.storages import BEFORE_QUANTIZING, OtherTensor
from pom_export.errors import CheckpointError

_FLOAT_TYPES: Final = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_OF_MIXERS: Final = "ag_proj.weight", "qc_proj.weight", "po_proj.weight"
_EMPTY_HINT: Final = "Is it complete? DeepSpeed's ZeRO stage 3 stores weights elsewhere: zero_to_fp32.py joins them"
# Weights up to this many bytes may repeat their values, whatever the file's size.
_SMALL: Final = 64 << 20
_FLOAT: Final = 4
_MOST_WIDENED: Final = 8  # 4 bits become 32
_VALUES_AT_ONCE: Final = 1 << 24


def with_room(
    file: Path, file_bytes: int, entries: Mapping[str, Tensor | OtherTensor | QuantizedTensor]
) -> dict[str, Tensor]:
    """Return a file's weights, after checking their kinds and shapes; quantized ones are dequantized.

    Args:
        file: for messages.
        file_bytes: size of the file.
        entries: the weights by name.

    Raises:
        CheckpointError: one is not stored value by value or is empty, its numbers are not ones that its layout can
            have, or together they claim more values than the file has.
    """
    plain: dict[str, Tensor] = {}
    quantized: dict[str, QuantizedTensor] = {}
    for name, entry in entries.items():
        if isinstance(entry, QuantizedTensor):
            quantized[name] = entry
            continue
        if isinstance(entry, OtherTensor):
            raise CheckpointError(f"{file}: {name} is {entry.kind}", entry.hint)
        if name.endswith(_OF_MIXERS) and entry.dtype not in _FLOAT_TYPES:  # before its scales are reported as unknown
            raise CheckpointError(f"{file}: {name} is {entry.dtype}", _type_hint(entry.dtype))
        if not entry.numel():
            raise CheckpointError(f"{file}: {name} of shape {tuple(entry.shape)} holds no values", _EMPTY_HINT)
        plain[name] = entry
    parts = {f"{name}[{i}]": part for name, entry in quantized.items() for i, part in enumerate(entry.parts)}
    claimed = sum(tensor.nbytes for _, tensor in _distinct({**plain, **parts}.items()))
    computed = sum(_FLOAT * entry.shape.numel() for entry in quantized.values())
    if claimed > 2 * file_bytes + _SMALL or computed > _MOST_WIDENED * 2 * file_bytes + _SMALL:
        raise CheckpointError(
            f"{file} claims {max(claimed, computed):,} bytes of weights, more than it can hold: it repeats values",
            "Save them contiguous: tensor.clone()",
        )
    return {name: plain[name] if name in plain else _computed(file, name, quantized[name]) for name in entries}


def _computed(file: Path, name: str, entry: QuantizedTensor) -> Tensor:
    """Return the values of a quantized weight."""
    try:
        return entry.values
    except LayoutError as error:
        raise error.of(file, name) from error


def check_values(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check every value of a checkpoint's weights.

    Raises:
        CheckpointError: one is an integer or complex, which no recognised model has, or is NaN or infinite.
    """
    for name, tensor in _distinct(tensors.items()):
        if tensor.dtype not in _FLOAT_TYPES:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}", _type_hint(tensor.dtype))
        if bad := sum(int((~torch.isfinite(part)).sum()) for part in _parts(tensor)):
            raise CheckpointError(
                f"{path}: {name} holds {bad} NaN or infinite values out of {tensor.numel()}",
                "Check whether the training diverged",
            )


def _type_hint(dtype: torch.dtype) -> str:
    if "float" in str(dtype):
        return "Save the weights in bfloat16 or wider: the scales of such narrow types are stored elsewhere"
    if dtype in {torch.int8, torch.uint8}:
        return f"Its scales are not in the file. {BEFORE_QUANTIZING}"
    return "Weights must be floating point"


def _distinct(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors with the first of their names, since tied weights are a single tensor."""
    seen: set[Any] = set()
    for name, tensor in named:
        view = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
        if view not in seen:
            seen.add(view)
            yield name, tensor


def _parts(tensor: Tensor) -> Iterable[Tensor]:
    """Return a tensor cut along its first dimension, so that intermediate results are small."""
    rows = len(tensor) if tensor.ndim else 1
    most = max(1, _VALUES_AT_ONCE * rows // tensor.numel())
    return tensor.split(most) if rows > most else (tensor,)
