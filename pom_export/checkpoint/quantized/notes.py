"""What to tell the user about weights that were dequantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pom_export.checkpoint.quantized.tensor import QuantizedTensor


def notes_on(entries: Iterable[Any]) -> list[str]:
    """Return notes on the quantized weights among a set's entries, one sentence each."""
    found = [entry for entry in entries if isinstance(entry, QuantizedTensor)]
    if not found:
        return []
    counted = Counter(entry.layout for entry in found)
    kinds = " and ".join(f"{number} from {layout}" for layout, number in counted.items())
    were = "weights were" if len(found) > 1 else "weight was"
    notes = [
        f"{len(found)} {were} dequantized to float32, to exactly the values that the library gives them ({kinds}): "
        "an export in float32 has these values, and `pom-export quantize` makes the file small again"
    ]
    if inputs := sum(entry.activations for entry in found):
        layers = f"{inputs} of their layers" if inputs < len(found) else "their layers"
        notes.append(f"{layers} also quantized the input while running, which an export does not")
    return notes
