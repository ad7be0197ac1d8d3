"""The forms that products can be quantized in, and which of them suit a purpose."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.claims import METADATA_PREFIX, QUANTIZED, QuantizedClaim
from pom_export.graph.loading import load_graph
from pom_export.graph.passes import ClaimLeastPass
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import PRODUCTS_OF, FloatProduct, float_products, split_biases
from pom_export.graph.quantized.scaled import write_scaled_product
from pom_export.graph.quantized.writing import (
    FLOAT_ACTIVATIONS,
    INTEGER_ACTIVATIONS,
    write_block_product,
    write_dynamic_product,
)
from pom_export.graph.saving import save_model
from pom_export.quantization.choosing import FLOAT32
from pom_export.quantization.for_tensorrt import fits, rounded_weight
from pom_export.quantization.names import TENSORRT
from pom_export.quantization.rounding import gptq, nearest

SCALED: Final = "scaled"
"""The rounding of weights for TensorRT."""

_BITS: Final = {"int4": 4, "int8": 8}
# Rows that share a scale: of int8 weights; and of int4 weights, those that cost little, and those that are fast.
_INT8_BLOCK: Final = 128
_FINE: Final = 32
_COARSE: Final = 128
_SMALLEST_BLOCK: Final = 16
# A product of two 8-bit numbers and a sum of two such products fit in 16 bits if one of the factors has 7. Processors
# without VNNI saturate otherwise, and a file must give the same numbers everywhere.
_SEVEN_BITS: Final = 63

_Matrix = npt.NDArray[np.float32]
_Array = npt.NDArray[Any]
_Round = Callable[[_Matrix, str, _Array], QuantizedWeight]
_Write = Callable[[ir.Model, FloatProduct, QuantizedWeight, float | None], None]


@dataclass(frozen=True)
class Recipe:
    """A form of quantized products.

    Attributes:
        name: in words, for a report.
        rounding: what it has in common with the forms that hold the same rounded weights.
        kinds: the types that weights may have, the narrowest first, and float32 as the last.
        round: returns a product's weight in a type, from float32, (K, N), and (K, K), the mean of x^T x over its
            activations x.
        write: makes a product one of this form; the last argument is the scale of its activations, if they have one.
        activations: the type of activations whose scales are fixed in the file: "int8" or "fp8"; None: they have none.
        fits: whether a product of some shape, (K, N), can have this form.
    """

    name: str
    rounding: str
    kinds: tuple[str, ...]
    round: _Round
    write: _Write
    activations: str | None = None
    fits: Callable[[tuple[int, int]], bool] = lambda _: True


def _round_in_blocks(matrix: _Matrix, kind: str, moments: _Array, int4_block: int) -> QuantizedWeight:
    if kind == "int4":
        return gptq(matrix, _BITS[kind], _block(len(matrix), int4_block), moments)
    return nearest(matrix, _BITS[kind], _block(len(matrix), _INT8_BLOCK), np.diagonal(moments))


def _round_in_columns(matrix: _Matrix, kind: str, moments: _Array) -> QuantizedWeight:
    return nearest(matrix, _BITS[kind], len(matrix), np.diagonal(moments), largest=_SEVEN_BITS)


def _block(rows: int, wanted: int) -> int:
    """Return the size of blocks: the largest power of two up to the wanted one that is not mostly filling."""
    size = wanted
    while size > _SMALLEST_BLOCK and size >= 2 * rows:
        size //= 2
    return size


def _in_blocks(weights: str, block: int, accuracy: int) -> Recipe:
    activations = "rounded to 8 bits in blocks" if accuracy == INTEGER_ACTIVATIONS else "in float32"
    return Recipe(
        f"blocks of {block}, activations {activations}",
        f"blocks of {block}",
        ("int4", "int8", FLOAT32) if weights == "int4" else ("int8", FLOAT32),
        functools.partial(_round_in_blocks, int4_block=block),
        lambda model, product, weight, _: write_block_product(model, product, weight, accuracy),
    )


_DYNAMIC: Final = Recipe(
    "columns, activations rounded to 8 bits with one scale per call",
    "columns",
    ("int8", FLOAT32),
    _round_in_columns,
    lambda model, product, weight, _: write_dynamic_product(model, product, weight),
)


def _scaled(weights: str, activations: str | None) -> Recipe:
    rounded = f"rounded to {activations} with a fixed scale" if activations else "in float"
    return Recipe(
        f"Q/DQ for TensorRT, activations {rounded}",
        SCALED,
        (weights, FLOAT32),
        lambda matrix, kind, moments: rounded_weight(matrix, kind, moments),
        functools.partial(write_scaled_product, shared=True),
        activations,
        functools.partial(fits, kind=weights),
    )


def recipes_for(
    weights: str, activations: str | None, runtime: str, purpose: str, *, stateful: bool
) -> Sequence[Recipe]:
    """Return the forms to try.

    With one scale per call for all activations, a sequence's result depends on the others in its batch, and on how it
    is cut into calls. So that form is only tried for prompts, or for files without a state. Eight-bit weights in blocks
    with activations in float32 are not: ONNX Runtime 1.32 takes a hundred times as long for them
    (`python -m benchmarks.quantized --products`).
    """
    if runtime == TENSORRT:
        return [_scaled(weights, activations)]
    if weights == "int4":
        return [
            _in_blocks(weights, _FINE, INTEGER_ACTIVATIONS),
            _in_blocks(weights, _FINE, FLOAT_ACTIVATIONS),
            _in_blocks(weights, _COARSE, INTEGER_ACTIVATIONS),
        ]
    dynamic = [_DYNAMIC] if purpose == "prefill" or not stateful else []
    return [_in_blocks(weights, _INT8_BLOCK, INTEGER_ACTIVATIONS), *dynamic]


def save_quantized(
    original: Path,
    path: Path,
    weights: Mapping[str, QuantizedWeight],
    recipe: Recipe,
    claim: QuantizedClaim,
    scales: Mapping[str, float],
) -> None:
    """Save a copy of a file in which some products are quantized.

    Args:
        original: the file.
        path: where the copy goes.
        weights: the weights by product.
        recipe: the form of the products.
        claim: what the copy says of itself.
        scales: the scales of activations, by name, if the form needs them.
    """
    graph = load_graph(original)
    split_biases(graph, weights)
    for product in float_products(graph, PRODUCTS_OF):
        if product.name in weights:
            recipe.write(graph, product, weights[product.name], scales.get(product.input))
    graph.metadata_props[METADATA_PREFIX + QUANTIZED] = claim.to_json()
    ClaimLeastPass()(graph)
    save_model(graph, path)


def claim_of(weights: str, original_sha256: str, types: Mapping[str, str]) -> QuantizedClaim:
    """Return what a file says of how its products were quantized."""
    return QuantizedClaim(weights, original_sha256, {name: kind for name, kind in types.items() if kind != weights})
