"""Quantized copies of exported files, honest ones and spoiled ones, and the faults that spoil them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from pom_export.graph.quantized.block_weights import LARGEST, QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct, float_products
from pom_export.graph.quantized.scaled import write_scaled_product
from pom_export.graph.quantized.writing import (
    FLOAT_ACTIVATIONS,
    INTEGER_ACTIVATIONS,
    write_block_product,
    write_dynamic_product,
)
from pom_export.graph.saving import save_model

Change = Callable[[QuantizedWeight], QuantizedWeight]
Make = Callable[[FloatProduct], QuantizedWeight]
FORMS: Mapping[str, tuple[int, int]] = {
    "int4 blocks": (4, INTEGER_ACTIVATIONS),
    "int4 blocks, float32 activations": (4, FLOAT_ACTIVATIONS),
    "int8 blocks": (8, INTEGER_ACTIVATIONS),
    "int8 columns": (8, 0),
    "int4 pairs": (4, 0),
    "int8 pairs": (8, 0),
}
"""Bits and accuracy level by form; those without one are in standard operators, pairs being Q and DQ."""
# Of activations: few of a small model's are beyond 127 of these.
_STEP = 0.05


def rounded(matrix: np.ndarray[Any, Any], bits: int, block: int) -> QuantizedWeight:
    """Round a matrix (K, N) to the nearest integers, with the scales that its largest numbers need."""
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    padded = np.zeros((blocks * block, columns), np.float32)
    padded[:rows] = matrix
    scales = np.abs(padded.reshape(blocks, block, columns)).max(axis=1) / LARGEST[bits]
    scales[scales == 0] = 1
    values = np.rint(padded / np.repeat(scales, block, axis=0))[:rows]
    return QuantizedWeight(values.astype(np.int8), scales.astype(np.float32), bits, block)


def quantize(
    original: Path,
    path: Path,
    form: str = "int4 blocks",
    *,
    block: int = 16,
    changes: Mapping[str, Change] | None = None,
    weights: Mapping[str, Make] | None = None,
) -> list[str]:
    """Save a copy of a float32 file with quantized products, and return their names.

    Args:
        original: the file.
        path: where the copy goes.
        form: one of FORMS.
        block: how many rows share a scale, where the form has blocks.
        changes: by product, what to do to its rounded weight.
        weights: by product, the weight to give it instead of its own.
    """
    bits, accuracy = FORMS[form]
    model = ir.load(original)
    found = float_products(model)
    for product in found:
        matrix = product.matrix()
        its = len(matrix) if form in {"int8 columns", "int8 pairs"} else block
        make = (weights or {}).get(product.name)
        weight = rounded(matrix, bits, its) if make is None else make(product)
        if (change := (changes or {}).get(product.name)) is not None:
            weight = change(weight)
        if form == "int8 columns":
            write_dynamic_product(model, product, weight)
        elif form in {"int4 pairs", "int8 pairs"}:
            write_scaled_product(model, product, weight, None if bits == 4 else _STEP)
        else:
            write_block_product(model, product, weight, accuracy)
    save_model(model, path)
    return [product.name for product in found]


def twice_the_scales(weight: QuantizedWeight) -> QuantizedWeight:
    return replace(weight, scales=weight.scales * 2)


def twice_one_blocks_scale(weight: QuantizedWeight) -> QuantizedWeight:
    scales = weight.scales.copy()
    scales[0, 1] *= 2
    return replace(weight, scales=scales)


def swapped_columns(weight: QuantizedWeight) -> QuantizedWeight:
    order = np.arange(weight.values.shape[1])
    order[:2] = order[1::-1]
    return replace(weight, values=np.ascontiguousarray(weight.values[:, order]), scales=weight.scales[:, order])


def swapped_neighbours(weight: QuantizedWeight) -> QuantizedWeight:
    """Exchange rows 0 and 1, 2 and 3, ...: what exchanging the halves of each byte does to integers of 4 bits."""
    order = np.arange(len(weight.values)) ^ 1
    return replace(weight, values=np.ascontiguousarray(weight.values[order]))


def zeros(weight: QuantizedWeight) -> QuantizedWeight:
    return replace(weight, values=np.zeros_like(weight.values))


def reversed_blocks(weight: QuantizedWeight) -> QuantizedWeight:
    """Exchange the scales of the blocks along K, as one does who packs them in another order."""
    return replace(weight, scales=np.ascontiguousarray(weight.scales[::-1]))


def scales_of_other_axis(weight: QuantizedWeight) -> QuantizedWeight:
    """Lay scales out by block instead of by column."""
    return replace(weight, scales=np.ascontiguousarray(weight.scales.T).reshape(weight.scales.shape))


def one_more(weight: QuantizedWeight) -> QuantizedWeight:
    """Add one to the first integer, which no comparison with an original can tell from rounding."""
    values = weight.values.copy()
    values[0, 0] += 1 if values[0, 0] < 0 else -1
    return replace(weight, values=values)


FAULTS: Mapping[str, Change] = {
    change.__name__: change
    for change in (
        twice_the_scales,
        twice_one_blocks_scale,
        swapped_columns,
        swapped_neighbours,
        zeros,
        reversed_blocks,
        scales_of_other_axis,
    )
}
"""Changes of a weight that make it another one."""
