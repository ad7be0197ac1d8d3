"""Recognise operators that compute with quantized values, of the standard and of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import onnx_ir as ir

from pom_export.graph.loading import load_graph
from pom_export.graph.quantized.products import BLOCK_PRODUCT, constant_of, is_symmetric
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS

_EIGHT_BITS: Final = frozenset((
    "ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
    "MatMulInteger", "MatMulIntegerToFloat", "QAttention", "QGemm", "QLinearConv", "QLinearMatMul", "QuantizeLinear",
))  # fmt: skip
_ANY_BITS: Final = ("GatherBlockQuantized", "MatMulBnb4", BLOCK_PRODUCT)
_FOUR_BIT_TYPES: Final = (ir.DataType.INT4, ir.DataType.UINT4)
EIGHT, FOUR = 8, 4


def bits_of(nodes: Iterable[ir.Node]) -> int | None:
    """Return the bits of the coarsest quantized values that nodes compute with, 8 or 4; None if there are none."""
    found = [_bits(node) for node in nodes]
    return min((bits for bits in found if bits is not None), default=None)


def _bits(node: ir.Node) -> int | None:
    if node.op_type in _ANY_BITS:
        bits = node.attributes.get("bits")
        return EIGHT if bits is not None and bits.as_int() >= EIGHT else FOUR
    if node.op_type not in _EIGHT_BITS:
        return None
    return FOUR if any(value is not None and value.dtype in _FOUR_BIT_TYPES for value in node.inputs) else EIGHT


def activation_bits(nodes: Iterable[ir.Node]) -> int | None:
    """Return the bits of the coarsest values that nodes compute with, if the values of quantized weights are known.

    Those are known that `quantized_products` reads. None: everything else is in floating point.
    """
    found = [_rounding_bits(node) for node in nodes]
    return min((bits for bits in found if bits is not None), default=None)


def _rounding_bits(node: ir.Node) -> int | None:
    if node.op_type == "DequantizeLinear" and constant_of(node.inputs[0]) is not None:
        return None if is_symmetric(node) else _bits(node)
    if node.op_type != BLOCK_PRODUCT or any(value is not None for value in node.inputs[3:]):
        return _bits(node)
    level = node.attributes.get("accuracy_level")
    return EIGHT if level is not None and level.as_int() == INTEGER_ACTIVATIONS else None


def is_quantized(model: ir.Model) -> bool:
    """Return whether a graph computes with integers that stand for other numbers, anywhere."""
    return bits_of(model.graph.all_nodes()) is not None


def shared_scale_notes(file: Path) -> list[str]:
    """Note that a file's rows affect each other, because all activations of a call are rounded with one scale.

    Args:
        file: the ONNX file; its external weights are not read.
    """
    nodes = load_graph(file).graph.all_nodes()
    if not any(node.op_type == "DynamicQuantizeLinear" for node in nodes):
        return []
    return [
        "its activations are rounded with one scale per call: what a row gives depends a little on the other rows of "
        "its call, and a stream on how it is cut into calls. Weights in blocks don't have that: quantize the original "
        "for decode or both"
    ]


def rounded_activation_notes(file: Path) -> list[str]:
    """Note that how a text is cut into calls shows in its outputs, because products round activations to 8 bits.

    What differs in the last digits between calls of other lengths is then rounded to another of 8 bits here and there:
    outputs of the demo's model differed by up to 6e-3 of the largest, and by 6e-7 without rounding. Rows of one call
    don't affect each other.

    Args:
        file: the ONNX file; its external weights are not read.
    """
    nodes = load_graph(file).graph.all_nodes()
    if not any(node.op_type == BLOCK_PRODUCT and _rounding_bits(node) == EIGHT for node in nodes):
        return []
    return [
        "its products round activations to 8 bits, so how a prompt is cut into calls, which depends on what else runs, "
        "shows in the third digit of its outputs: an answer may change where two tokens are almost as likely. The "
        "float32 file that it was made from doesn't have that"
    ]
