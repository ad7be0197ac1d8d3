"""The forms that products can be quantized in on a CPU, and which of them suit a purpose."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.claims import METADATA_PREFIX, QUANTIZED, QuantizedClaim
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct, float_products
from pom_export.graph.quantized.writing import (
    FLOAT_ACTIVATIONS,
    INTEGER_ACTIVATIONS,
    write_block_product,
    write_dynamic_product,
)
from pom_export.graph.saving import save_model
from pom_export.quantization.choosing import BITS, FLOAT32
from pom_export.quantization.rounding import gptq, nearest

PURPOSES: Final = ("both", "decode", "prefill")
"""What a file is made for: single tokens, prompts, or both."""

_BLOCK: Final = {"int4": 32, "int8": 128}
_SMALLEST_BLOCK: Final = 16
# A product of two 8-bit numbers and a sum of two such products fit in 16 bits if one of the factors has 7. Processors
# without VNNI saturate otherwise, and a file must give the same numbers everywhere.
_SEVEN_BITS: Final = 63

_Array = npt.NDArray[Any]
_Write = Callable[[ir.Model, FloatProduct, QuantizedWeight], None]


@dataclass(frozen=True)
class Recipe:
    """A form of quantized products.

    Attributes:
        name: in words, for a report.
        blocks: whether weights are in blocks, and rounded as such; else with one scale a column.
        write: makes a product one of this form.
    """

    name: str
    blocks: bool
    write: _Write

    def rounded(self, matrix: npt.NDArray[np.float32], weights: str, moments: _Array) -> QuantizedWeight:
        """Return a product's weight in a type.

        Args:
            matrix: float32, (K, N).
            weights: "int4" or "int8".
            moments: (K, K), the mean of x^T x over its activations x.
        """
        bits = BITS[weights]
        if not self.blocks:
            return nearest(matrix, bits, len(matrix), np.diagonal(moments), largest=_SEVEN_BITS)
        block = _block(len(matrix), _BLOCK[weights])
        if weights == "int4":
            return gptq(matrix, bits, block, moments)
        return nearest(matrix, bits, block, np.diagonal(moments))


INTEGERS: Final = Recipe(
    "blocks, activations rounded to 8 bits in blocks",
    blocks=True,
    write=lambda model, product, weight: write_block_product(model, product, weight, INTEGER_ACTIVATIONS),
)
FLOATS: Final = Recipe(
    "blocks, activations in float32",
    blocks=True,
    write=lambda model, product, weight: write_block_product(model, product, weight, FLOAT_ACTIVATIONS),
)
DYNAMIC: Final = Recipe(
    "columns, activations rounded to 8 bits with one scale per call", blocks=False, write=write_dynamic_product
)


def recipes_for(weights: str, purpose: str, *, stateful: bool) -> list[Recipe]:
    """Return the forms to try, those that are rounded alike side by side.

    With one scale per call for all activations, a sequence's result depends on the others in its batch, and on how it
    is cut into calls. So that form is only tried for prompts, or for files without a state.
    """
    alone = weights == "int8" and (purpose == "prefill" or not stateful)
    return [INTEGERS, FLOATS, *([DYNAMIC] if alone else [])]


def _block(rows: int, wanted: int) -> int:
    """Return the size of blocks: the largest power of two up to the wanted one that is not mostly filling."""
    size = wanted
    while size > _SMALLEST_BLOCK and size >= 2 * rows:
        size //= 2
    return size


def save_quantized(
    original: Path, path: Path, weights: Mapping[str, QuantizedWeight], recipe: Recipe, claim: QuantizedClaim
) -> None:
    """Save a copy of a file in which some products are quantized.

    Args:
        original: the file.
        path: where the copy goes.
        weights: the weights by product.
        recipe: the form of the products.
        claim: what the copy says of itself.
    """
    graph = ir.load(original, format="protobuf")
    for product in float_products(graph):
        if product.name in weights:
            recipe.write(graph, product, weights[product.name])
    graph.metadata_props[METADATA_PREFIX + QUANTIZED] = claim.to_json()
    save_model(graph, path)


def claim_of(weights: str, original_sha256: str, types: Mapping[str, str]) -> QuantizedClaim:
    """Return what a file says of how its products were quantized."""
    return QuantizedClaim(weights, original_sha256, {name: kind for name, kind in types.items() if kind != weights})


def quantized_names(types: Mapping[str, str]) -> Sequence[str]:
    """Return the products that are quantized."""
    return [name for name, kind in types.items() if kind != FLOAT32]
