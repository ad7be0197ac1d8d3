"""torchao: tensors of its own classes, pickled by torch.save or taken apart for safetensors.

The classes are in `torchao_classes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from pom_export.checkpoint.quantized.tensor import Found, LayoutError, QuantizedTensor
from pom_export.checkpoint.quantized.torchao_classes import CLASSES, PARTS, Taken, unpickled
from pom_export.checkpoint.storages import OtherTensor
from pom_export.errors import reason_of
from pom_export.json_text import parse_json


def find(entries: Mapping[Any, Any], metadata: Mapping[str, str]) -> Iterator[Found]:
    """Yield the weights in a state dict.

    Args:
        entries: the state dict, and other things among it.
        metadata: that of the safetensors file.
    """
    for key, value in entries.items():
        if isinstance(key, str) and isinstance(value, OtherTensor) and (taken := unpickled(value)) is not None:
            yield Found(key, {key}, partial(CLASSES[taken.name], taken))
    parts: dict[str, dict[str, str]] = {}
    for entry in entries:
        for part in PARTS:
            if isinstance(entry, str) and entry.endswith(f"_{part}"):
                parts.setdefault(entry.removesuffix(f"_{part}"), {})[part] = entry
    for start, held in parts.items():  # "module._weight" for parts of "module.weight"
        module, _, name = start.rpartition(".")
        key = f"{module}.{name.removeprefix('_')}"
        if name.startswith("_") and key in metadata:
            values = {part: entries[entry] for part, entry in held.items()}
            yield Found(key, {*held.values(), key} & entries.keys(), partial(_from_text, metadata[key], values))


def _from_text(text: str, parts: Mapping[str, Any]) -> QuantizedTensor:
    """Return a weight whose attributes are described in a file's metadata."""
    try:
        described = parse_json(text)
    except ValueError as error:
        raise LayoutError(f"its metadata is not readable JSON: {reason_of(error)}") from error
    kind, data, names = (described.get(key) if isinstance(described, dict) else None for key in _DESCRIBED)
    if not isinstance(kind, str) or kind not in CLASSES:
        raise LayoutError(f"it is of torchao's class {str(kind)[:40]}, which is packed for a kernel, or new")
    if not isinstance(data, dict) or not isinstance(names, list) or sorted(map(str, names)) != sorted(parts):
        raise LayoutError(f"its parts are {', '.join(sorted(parts))}, but its metadata lists {str(names)[:80]}")
    attributes = {key: value.get("_data") if _is_type(value) else value for key, value in data.items()}
    return CLASSES[kind](Taken(kind, parts, attributes))


_DESCRIBED: Final = ("_type", "_data", "_tensor_data_names")


def _is_type(value: Any) -> bool:
    return isinstance(value, dict) and value.get("_type") == "torch.dtype"
