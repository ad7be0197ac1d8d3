"""Find quantized weights in what a file contains, and put each in the place of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from pom_export.checkpoint.quantized import bitsandbytes, compressed_tensors, torchao
from pom_export.checkpoint.quantized.tensor import LayoutError, QuantizedTensor


def gather(file: Path, content: Any, metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> None:
    """Put a `QuantizedTensor` in the place of the parts of each quantized weight, in all tables that a file contains.

    Values are not computed yet. Parts that belong to nothing stay as they are.

    Args:
        file: for messages.
        content: what was read from the file, whose tables are changed in place.
        metadata: that of a safetensors file.
        config: `quantization_config` of the config.json beside the file, or None.

    Raises:
        CheckpointError: parts of a weight are missing or contradict one another.
    """
    for table in _tables(content):
        found = chain(bitsandbytes.find(table), compressed_tensors.find(table, config), torchao.find(table, metadata))
        made: dict[str, QuantizedTensor] = {}
        parts: dict[str, str] = {}
        for weight in found:
            try:
                if weight.name in made:
                    raise LayoutError(f"it has the parts of two layouts: {', '.join(sorted(weight.entries))}")
                made[weight.name] = weight.build()
            except LayoutError as error:
                raise error.of(file, weight.name) from error
            parts |= dict.fromkeys(weight.entries, weight.name)
        if made:
            _replace(table, made, parts)


def _replace(table: dict[Any, Any], made: Mapping[str, QuantizedTensor], parts: Mapping[str, str]) -> None:
    """Replace the first part of each weight by the weight, and remove the others."""
    entries = list(table.items())
    table.clear()
    for key, value in entries:
        weight = parts.get(key) if isinstance(key, str) else None
        if weight is None:
            table[key] = value
        else:
            table.setdefault(weight, made[weight])


def _tables(content: Any) -> Iterator[dict[Any, Any]]:
    """Yield all tables in what was read, each once."""
    waiting, seen = [content], {id(content)}
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
        inner = value.values() if isinstance(value, dict) else value
        for part in list(inner):
            if isinstance(part, (dict, list, tuple)) and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
