"""Quantize products in the forms that TensorRT multiplies in small types."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.nodes import is_aggregation
from pom_export.graph.quantized.block_weights import FLOAT8, LARGEST, LARGEST_FLOAT8, QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct
from pom_export.graph.quantized.scaled import write_scaled_product

INT8: Final = "int8"
INT4: Final = "int4"
FLOAT8_TYPE: Final = "fp8"
PRODUCTS_OF: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
"""The types of products that can be written so; see `float_products`."""
BLOCK: Final = 32
"""Rows of an int4 weight that share a scale: with blocks of 128, TensorRT for RTX restores some weights in memory."""
# Thresholds to cut weights off at, relative to the largest.
_SHARES: Final = np.linspace(0.6, 1.0, 33)
# What leads from an aggregation to the product after it, in mixers whose gate is not part of the op.
_ELEMENTWISE: Final = ("Mul", "Cast", "Reshape", "Transpose")


def write_for_tensorrt(
    model: ir.Model,
    products: Sequence[FloatProduct],
    weights: str,
    activations: str | None,
    scales: Mapping[str, float],
    keep: Collection[str] = (),
) -> dict[str, str]:
    """Make products ones of small values with scales, by rounding each weight to the nearest.

    Args:
        model: the graph.
        products: its products, as `float_products` returns them for `PRODUCTS_OF`.
        weights: "int8" or "fp8" (a scale per column), or "int4" (a scale per BLOCK rows of a column).
        activations: the same as `weights`, or None: they stay in float, which is what goes with "int4".
        scales: the scale of each product's activations, by the name of the product's input; see `activation_scales`.
        keep: names of products that stay as they are; see `kept_by_default`.

    Returns:
        The type of each product's weight, by the product's name: that of the file for those that stay as they are,
        because they are named or because BLOCK does not divide the rows of an int4 weight.

    Raises:
        InputError: see `write_scaled_product`.
    """
    assert activations is None or activations == weights != INT4
    written = {}
    for product in products:
        if product.name in keep or (weights == INT4 and product.shape[0] % BLOCK):
            assert product.initializer.dtype is not None
            written[product.name] = "float32" if product.initializer.dtype == ir.DataType.FLOAT else "float16"
            continue
        weight = nearest_positive(product.matrix(), weights)
        write_scaled_product(model, product, weight, scales[product.input] if activations else None, shared=True)
        written[product.name] = weights
    return written


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


def nearest_positive(matrix: npt.NDArray[np.float32], kind: str) -> QuantizedWeight:
    """Round a matrix to a small type, with positive scales as TensorRT requires them.

    Args:
        matrix: float32, (K, N).
        kind: "int8", "int4" or "fp8".

    Returns:
        The weight, with those scales of 33 that cut off more or less of the largest values which have the smallest
        square error; for "fp8", with scales that cut off nothing, because its steps are relative to the values.
    """
    rows, columns = matrix.shape
    block = BLOCK if kind == INT4 else rows
    parts = matrix.reshape(rows // block, block, columns)
    peaks = np.abs(parts).max(1, keepdims=True)
    peaks = np.where(peaks < np.finfo(np.float32).tiny * LARGEST_FLOAT8, 1, peaks)
    if kind == FLOAT8_TYPE:
        scales = (peaks / LARGEST_FLOAT8).astype(np.float32)
        values: npt.NDArray[Any] = (parts / scales).astype(FLOAT8)
    else:
        scales = _best_scales(parts, peaks, 4 if kind == INT4 else 8)
        values = _integers(parts, scales, 4 if kind == INT4 else 8).astype(np.int8)
    return QuantizedWeight(values.reshape(rows, columns), scales[:, 0], 4 if kind == INT4 else 8, block)


def _best_scales(parts: npt.NDArray[np.float32], peaks: npt.NDArray[Any], bits: int) -> npt.NDArray[np.float32]:
    best = np.full(peaks.shape, np.inf)
    chosen = (peaks / LARGEST[bits]).astype(np.float32)
    for share in _SHARES:
        scales = (peaks * share / LARGEST[bits]).astype(np.float32)
        error = ((_integers(parts, scales, bits) * scales - parts) ** 2).sum(1, keepdims=True)
        chosen, best = np.where(error < best, scales, chosen), np.minimum(error, best)
    return chosen


def _integers(parts: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    most = LARGEST[bits]
    integers: npt.NDArray[np.float32] = np.clip(np.rint(parts / scales), -most - (bits == 4), most)
    return integers
