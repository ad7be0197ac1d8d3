"""Prove that a quantized file multiplies by the weights that it was made with, and rounds activations as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pom_export.debugging.quantized_products import chosen_cases, compare_products
from pom_export.errors import ParityError
from pom_export.graph.exported_model import PRECISIONS, ExportedModel, read_model
from pom_export.graph.loading import load_graph
from pom_export.graph.nodes import add_constant
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import PRODUCTS_OF, float_products, split_biases
from pom_export.graph.quantized.reading import quantized_products
from pom_export.graph.quantized.unrounded import save_unrounded
from pom_export.graph.saving import save_graph
from pom_export.parity.candidates import onnxruntime_candidates, unrounded_candidates
from pom_export.parity.case import Case
from pom_export.parity.rewritten import Rewriting, compare_rewritten

_HINT = "No file was written. Verify the original, and report this if it is right"


def save_dequantized(original: Path, path: Path, weights: Mapping[str, QuantizedWeight]) -> None:
    """Save a copy of a file whose products have the weights that quantized ones stand for."""
    graph = load_graph(original)
    split_biases(graph, weights)
    for product in float_products(graph, PRODUCTS_OF):
        if product.name in weights:
            name = f"{product.initializer.name}.dequantized"
            numbers = weights[product.name].dequantized().astype(product.dtype)
            product.node.replace_input_with(1, add_constant(graph.graph, name, numbers))
    save_graph(graph, path)


def prove(original: Path, quantized: Path, dequantized: Path, cases: Sequence[Case], scratch: Path) -> Rewriting:
    """Compare a quantized file with what it should compute.

    Without rounding of activations, its outputs must be those of the original with the same weights in float32. With
    it, each product must be what the same rounding gives in float64.

    Args:
        original: the file that was quantized.
        quantized: the file.
        dequantized: the original with the file's weights restored in its own type, from `save_dequantized`.
        cases: the inputs.
        scratch: a folder for a copy.

    Returns:
        The comparison of the outputs.

    Raises:
        ParityError: they differ.
        InputError: no case could be compared.
    """
    unrounded = scratch / "unrounded.onnx"
    save_unrounded(quantized, unrounded)
    reference = read_model(dequantized)
    # In half precision, the reference's weights are rounded to it, and those of the file are only when they are used.
    found = compare_rewritten(reference, read_model(unrounded), cases, unrounded=reference.precision == PRECISIONS[0])
    found.check(original, _HINT)
    _check_products(read_model(quantized), cases)
    return found


def _check_products(quantized: ExportedModel, cases: Sequence[Case]) -> None:
    products = quantized_products(load_graph(quantized.path))
    candidates = onnxruntime_candidates(quantized)[0]
    # In half precision, what rounds to it would hide how activations are rounded.
    (candidate, *_) = (
        candidates if quantized.precision == PRECISIONS[0] else unrounded_candidates(quantized, candidates)
    )
    for name, each in compare_products(quantized.path, products, candidate, chosen_cases(cases), {}).items():
        if each.share > 1:
            raise ParityError(
                f"{name} is off by {each.error:.2e} of its largest value on {each.case}, where its rounding explains "
                f"{each.tolerance:.2e}",
                _HINT,
            )
