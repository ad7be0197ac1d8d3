"""Replace a product's float32 weight by integers, in one of the forms that runtimes have kernels for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.nodes import add_constant, cast_node, take_place
from pom_export.graph.quantized.block_weights import QuantizedWeight, pack_blocks
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT, FloatProduct

FLOAT_ACTIVATIONS: Final = 1
"""MatMulNBits' accuracy_level that multiplies in float32."""
INTEGER_ACTIVATIONS: Final = 4
"""The one that rounds activations to 8 bits, in blocks, and multiplies integers."""


def write_block_product(model: ir.Model, product: FloatProduct, weight: QuantizedWeight, accuracy: int) -> None:
    """Make a product MatMulNBits, ONNX Runtime's operator for weights in blocks.

    Args:
        model: the graph.
        product: one of its products.
        weight: its quantized weight.
        accuracy: FLOAT_ACTIVATIONS or INTEGER_ACTIVATIONS.
    """
    graph, name = model.graph, product.initializer.name
    packed = add_constant(graph, f"{name}.int{weight.bits}", pack_blocks(weight))
    scales = add_constant(graph, f"{name}.scales", np.ascontiguousarray(weight.scales.T))
    rows, columns = product.shape
    attributes = {
        "K": rows, "N": columns, "bits": weight.bits, "block_size": weight.block, "accuracy_level": accuracy
    }  # fmt: skip
    node = ir.node(BLOCK_PRODUCT, [product.node.inputs[0], packed, scales], attributes, domain=MICROSOFT)
    model.opset_imports.setdefault(MICROSOFT, 1)
    replace_product(model, product, [node])


def write_dynamic_product(model: ir.Model, product: FloatProduct, weight: QuantizedWeight) -> None:
    """Make a product one of integers, in standard operators: activations are rounded to 8 bits in each call.

    All of a call's activations share a scale, so each row of a batch has some effect on the others' rounding.

    Args:
        model: the graph.
        product: one of its products.
        weight: its quantized weight, of 8 bits and with a scale per column.
    """
    graph, name = model.graph, product.initializer.name
    values = add_constant(graph, f"{name}.int8", weight.values)
    scales = add_constant(graph, f"{name}.scales", weight.scales[0])
    given = product.node.inputs[0]
    assert given is not None
    rounding, added = _rounding_of(given, product.name)
    integers, scale, zero = rounding.outputs
    whole = ir.node("MatMulInteger", [integers, values, zero], name=f"{product.name}.integers")
    cast = cast_node(whole.outputs[0], ir.DataType.FLOAT)
    cast.name = f"{product.name}.cast"
    both = ir.node("Mul", [scale, scales], name=f"{product.name}.scales")
    last = ir.node("Mul", [cast.outputs[0], both.outputs[0]])
    for node, dtype in ((whole, ir.DataType.INT32), (cast, ir.DataType.FLOAT)):
        node.outputs[0].shape, node.outputs[0].type = product.node.outputs[0].shape, ir.TensorType(dtype)
    both.outputs[0].shape, both.outputs[0].type = ir.Shape([product.shape[1]]), ir.TensorType(ir.DataType.FLOAT)
    replace_product(model, product, [*added, whole, cast, both, last])


def _rounding_of(value: ir.Value, name: str) -> tuple[ir.Node, list[ir.Node]]:
    """Return the node that rounds a value to 8 bits, and the nodes to add: none if another product has added it."""
    for user, _ in value.uses():
        if user.op_type == "DynamicQuantizeLinear":
            return user, []
    node = ir.node("DynamicQuantizeLinear", [value], num_outputs=3, name=f"{name}.rounding")
    integers, scale, zero = node.outputs
    integers.shape, integers.type = value.shape, ir.TensorType(ir.DataType.UINT8)
    scale.shape, scale.type = ir.Shape([]), ir.TensorType(ir.DataType.FLOAT)
    zero.shape, zero.type = ir.Shape([]), ir.TensorType(ir.DataType.UINT8)
    return node, [node]


def replace_product(model: ir.Model, product: FloatProduct, nodes: Sequence[ir.Node]) -> None:
    """Put nodes where a product was; the last one makes its output, and has its name."""
    old = product.node
    transpose = old.inputs[1].producer() if old.inputs[1] is not None else None
    model.graph.insert_before(old, nodes)
    take_place(old.outputs[0], nodes[-1].outputs[0])
    nodes[-1].name = old.name
    model.graph.remove(old, safe=True)
    if transpose is not None and not transpose.outputs[0].uses() and not transpose.outputs[0].is_graph_output():
        model.graph.remove(transpose, safe=True)
    weight = product.initializer
    if not weight.uses() and not weight.is_graph_output():
        assert weight.name is not None
        del model.graph.initializers[weight.name]
