"""Compare the nodes and weights of a quantized graph with those of the graph that was quantized."""

from __future__ import annotations

import onnx_ir as ir

from pom_export.graph.nodes import add_constant
from pom_export.graph.quantized.operators import is_quantized
from pom_export.graph.quantized.products import FloatProduct, float_products, split_biases
from pom_export.graph.quantized.reading import QuantizedProduct, dequantize, quantized_products
from pom_export.parity.quantized.weights import distance_of


def in_float(given: ir.Model, wanted: ir.Model) -> None:
    """Undo a graph's quantization, so that what else differs from the graph that it should be can be seen.

    Its products become float32's. Those of the other graph get the same weights where they differ only by rounding.

    Args:
        given: the graph.
        wanted: the graph that it should be; if it is quantized itself, nothing is changed.

    Raises:
        InputError: a product of the graph has unusable integers or scales.
    """
    if not is_quantized(given) or is_quantized(wanted):
        return
    quantized = quantized_products(given)
    split_biases(wanted, {product.name for product in quantized})
    theirs = {product.name: product for product in float_products(wanted)}
    for product in quantized:
        if product.name in theirs:
            _take_weight(wanted.graph, theirs[product.name], product)
    dequantize(given)


def _take_weight(graph: ir.Graph, product: FloatProduct, quantized: QuantizedProduct) -> None:
    """Give a product its own weight, which no other node uses: the quantized one if rounding explains it."""
    matrix, weight = product.matrix(), quantized.weight
    if matrix.shape == weight.values.shape and distance_of(weight, matrix):
        matrix = weight.dequantized()
    old, name = product.node.inputs[1], product.initializer.name or product.name
    if not product.transposed and len(product.initializer.uses()) == 1 and not product.initializer.is_graph_output():
        product.initializer.const_value = ir.tensor(matrix, name=name)
        return
    product.node.replace_input_with(1, add_constant(graph, name, matrix))
    transpose = old.producer() if old is not None else None
    if transpose is not None and not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
        graph.remove(transpose, safe=True)
