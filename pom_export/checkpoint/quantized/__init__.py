"""Read weights that other libraries quantized, to exactly the numbers that these libraries compute from them.

One file per library: each recognises its entries in a state dict and describes every weight as a `QuantizedTensor`,
which computes its values only when the weights are taken. None of these libraries is imported.
"""

from __future__ import annotations

from pom_export.checkpoint.quantized.compressed_config import CONFIG_HINT
from pom_export.checkpoint.quantized.gathering import gather
from pom_export.checkpoint.quantized.notes import notes_on
from pom_export.checkpoint.quantized.tensor import LayoutError, QuantizedTensor

__all__ = ["CONFIG_HINT", "LayoutError", "QuantizedTensor", "gather", "notes_on"]
