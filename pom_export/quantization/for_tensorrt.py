"""Which products TensorRT multiplies in small types, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.nodes import is_aggregation
from pom_export.graph.quantized.block_weights import FLOAT8, LARGEST_FLOAT8, QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct
from pom_export.quantization.rounding import gptq, nearest

_Array = npt.NDArray[Any]

INT8: Final = "int8"
INT4: Final = "int4"
FLOAT8_TYPE: Final = "fp8"
BLOCK: Final = 32
"""Rows of an int4 weight that share a scale."""
# Columns of smaller numbers count as 0, for which any scale will do.
_SMALLEST: Final = 1e-35
# What leads from an aggregation to the product after it, in mixers whose gate is not part of the op.
_ELEMENTWISE: Final = ("Mul", "Cast", "Reshape", "Transpose")


def fits(shape: tuple[int, int], kind: str) -> bool:
    """Return whether TensorRT for RTX multiplies a weight of a shape, (K, N), in a type.

    It restores int4 weights with an odd number of columns to floats in memory before each product, whatever their
    blocks: seen with version 1.7 for N of 61 and 50257. (It also does so if there is only one block; `build` says it.)
    """
    rows, columns = shape
    return kind != INT4 or (rows % BLOCK == 0 and columns % 2 == 0)


def kept_by_default(products: Sequence[FloatProduct], activations: str | None) -> list[str]:
    """Return the names of the products whose activations int8 cannot hold: those that multiply an aggregate.

    The first aggregates of a sequence are means of few tokens, and several times larger than the later ones, so one
    scale for all of them loses either. The other types of activations have the range.
    """
    return [product.name for product in products if activations == INT8 and _multiplies_aggregate(product.node)]


def _multiplies_aggregate(product: ir.Node) -> bool:
    value = product.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        if is_aggregation(maker):
            return True
        if maker.op_type not in _ELEMENTWISE:
            return False
        # The gate is computed from the tokens, and either side may be it.
        found = [each for each in maker.inputs if each is not None and each.producer() is not None]
        aggregates = [each for each in found if (made := each.producer()) is not None and is_aggregation(made)]
        value = next(iter([*aggregates, *found]), None)
    return False


def rounded_weight(matrix: npt.NDArray[np.float32], kind: str, moments: _Array | None = None) -> QuantizedWeight:
    """Round a matrix to a small type, with positive scales as TensorRT requires them.

    Args:
        matrix: float32, (K, N).
        kind: "int8", "int4" or "fp8".
        moments: (K, K), the mean of x^T x over the activations x. If given, errors count as much as what they are
            multiplied by, and those of "int4" are evened out among the rows by GPTQ. "fp8" makes no use of it.
    """
    if kind == INT4:
        if moments is None:
            return nearest(matrix, 4, BLOCK, positive=True)
        return gptq(matrix, 4, BLOCK, moments, positive=True)
    if kind == INT8:
        importance = None if moments is None else np.diagonal(moments)
        return nearest(matrix, 8, len(matrix), importance, positive=True)
    # Nothing is cut off: steps are relative to the values.
    peaks = np.abs(matrix).max(0, keepdims=True)
    scales = np.where(peaks < _SMALLEST, 1, peaks / LARGEST_FLOAT8).astype(np.float32)
    return QuantizedWeight((matrix / scales).astype(FLOAT8), scales, 8, len(matrix))
