"""Prove that a quantized file multiplies by the weights that it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import onnx_ir as ir

from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.nodes import add_constant
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import BLOCK_PRODUCT, float_products
from pom_export.graph.quantized.reading import dequantize
from pom_export.graph.quantized.writing import FLOAT_ACTIVATIONS
from pom_export.graph.saving import save_graph
from pom_export.parity.case import Case
from pom_export.parity.rewritten import Rewriting, compare_rewritten

_ACCURACY: Final = "accuracy_level"
# Of the forms in standard operators, which say themselves what they compute.
_WRITTEN_OUT: Final = ("DequantizeLinear", "DynamicQuantizeLinear")


def save_dequantized(original: Path, path: Path, weights: Mapping[str, QuantizedWeight]) -> None:
    """Save a copy of a float32 file whose products have the weights that quantized ones stand for."""
    graph = ir.load(original, format="protobuf")
    for product in float_products(graph):
        if product.name in weights:
            name = f"{product.initializer.name}.dequantized"
            product.node.replace_input_with(1, add_constant(graph.graph, name, weights[product.name].dequantized()))
    save_graph(graph, path)


def save_unrounded(quantized: Path, path: Path) -> None:
    """Save a copy of a quantized file that does not round activations.

    Products in blocks stay ONNX Runtime's, so that it is its own reading of the weights that is compared.
    """
    graph = ir.load(quantized, format="protobuf")
    if any(node.op_type in _WRITTEN_OUT for node in graph.graph):
        dequantize(graph)
    for node in graph.graph:
        if node.op_type == BLOCK_PRODUCT:
            node.attributes[_ACCURACY] = ir.AttrInt64(_ACCURACY, FLOAT_ACTIVATIONS)
    save_graph(graph, path)


def compare_dequantized(original: Path, quantized: Path, cases: Sequence[Case], scratch: Path) -> Rewriting:
    """Compare a quantized file, without rounding of activations, with its original with the same weights in float32.

    Args:
        original: the dequantized original, from `save_dequantized`.
        quantized: the file.
        cases: the inputs.
        scratch: a folder for a copy.

    Raises:
        InputError: no case could be compared.
    """
    unrounded = scratch / "unrounded.onnx"
    save_unrounded(quantized, unrounded)
    reference: ExportedModel = read_model(original)
    return compare_rewritten(reference, read_model(unrounded), cases)
