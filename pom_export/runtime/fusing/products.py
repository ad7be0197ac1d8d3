"""Products: of int4 and int8 weights, grouped ones in float32, and the biases that are added to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.nodes import only_user
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS
from pom_export.runtime.fusing.constants import both_ways, is_constant, is_vector, maker_of
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.steps import Epilogue, GroupedProduct, Product, Step

BLOCKS: Final = (16, 32, 64, 128, 256)
_BITS: Final = (4, 8)
_NUMBERS: Final = ("K", "N", "bits", "block_size", "accuracy_level")
# Of a product that is not in groups, for which ONNX Runtime's own is faster beyond.
_MOST_DENSE: Final = 2**16
_TOKENS_LAST: Final = [0, 2, 1]
_PLAIN: Final = {"kernel_shape": (1,), "strides": (1,), "dilations": (1,), "pads": (0, 0)}


def block_product(node: ir.Node, shapes: Shapes) -> Product | None:
    """Read a MatMulNBits without zero points that rounds its activations."""
    if (node.domain, node.op_type) != (MICROSOFT, BLOCK_PRODUCT) or len(node.inputs) < 3:
        return None
    if any(value.type is not ir.AttributeType.INT for value in node.attributes.values()):
        return None
    numbers = {name: attribute.as_int() for name, attribute in node.attributes.items()}
    if any(number for name, number in numbers.items() if name not in _NUMBERS):
        return None
    inner, width, bits, block, level = (numbers.get(name, 0) for name in _NUMBERS)
    x, packed, scales, *rest = node.inputs
    shape = shapes.of(x)
    zero_points, order, bias = (*rest, None, None, None)[:3]
    if bits not in _BITS or level != INTEGER_ACTIVATIONS or block not in BLOCKS:
        return None
    if zero_points is not None or order is not None:
        return None
    if x is None or shape is None or shape[-1] != inner or width < 1:
        return None
    if bias is not None and not is_vector(bias, width):
        return None
    if packed is None or scales is None or not (is_constant(packed) and is_constant(scales)):
        return None
    blocks = -(-inner // block)
    sizes = (packed.const_value and packed.const_value.size, scales.const_value and scales.const_value.size)
    if sizes != (width * blocks * block * bits // 8, width * blocks):
        return None
    if (packed.dtype, scales.dtype) != (ir.DataType.UINT8, ir.DataType.FLOAT):
        return None
    return Product((node,), x, node.outputs[0], inner, width, packed, scales, block, bits, bias)


def grouped_product(node: ir.Node, shapes: Shapes) -> GroupedProduct | None:
    """Read Transpose(Conv(Transpose(x))) of kernel size 1, as a mixer's po_proj is exported."""
    if node.op_type != "Transpose" or node.domain or not _swaps(node):
        return None
    conv = maker_of(node.inputs[0], "Conv")
    first = conv.inputs[0].producer() if conv is not None and conv.inputs[0] is not None else None
    if conv is None or first is None or first.op_type != "Transpose" or first.domain or not _swaps(first):
        return None
    x, weight, bias = first.inputs[0], conv.inputs[1], conv.inputs[2] if len(conv.inputs) > 2 else None
    shape = shapes.of(x)
    if x is None or shape is None or weight is None or not is_constant(weight) or weight.dtype != ir.DataType.FLOAT:
        return None
    group = conv.attributes.get("group")
    groups = 1 if group is None else group.as_int()
    sizes = tuple(weight.shape or ())
    if len(sizes) != 3 or not all(isinstance(size, int) for size in sizes) or groups < 1 or not _is_plain(conv):
        return None
    width, inner, kernel = (int(size) for size in sizes)  # type: ignore[arg-type]
    if kernel != 1 or width % groups or inner * groups != shape[-1] or (groups == 1 and width * inner > _MOST_DENSE):
        return None
    if bias is not None and not is_vector(bias, width):
        return None
    # The first transposition may have other users, which keep it.
    nodes = (first, conv, node) if only_user(first.outputs[0]) is conv else (conv, node)
    return GroupedProduct(nodes, x, node.outputs[0], inner * groups, width, weight, groups, bias)


def biased(node: ir.Node, made: dict[ir.Value, Step]) -> Product | GroupedProduct | None:
    """Read the sum of a product, which nothing else uses, and a constant for each output."""
    if node.op_type != "Add" or node.domain:
        return None
    for inner, bias in both_ways(node):
        product = made.get(inner)
        if not isinstance(product, Product | GroupedProduct) or product.bias is not None:
            continue
        if product.epilogue == Epilogue() and only_user(inner) is node and is_vector(bias, product.width):
            return replace(product, nodes=(*product.nodes, node), y=node.outputs[0], bias=bias)
    return None


def _swaps(node: ir.Node) -> bool:
    order = node.attributes.get("perm")
    return order is not None and list(order.as_ints()) == _TOKENS_LAST


def _is_plain(conv: ir.Node) -> bool:
    pad = conv.attributes.get("auto_pad")
    given = {name: tuple(conv.attributes[name].as_ints()) for name in _PLAIN if name in conv.attributes}
    return all(_PLAIN[name] == numbers for name, numbers in given.items()) and (
        pad is None or pad.as_string() in {"NOTSET", "VALID"}
    )
