"""Find a graph's quantized products, and make the graph that multiplies by the same weights in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.errors import InputError
from pom_export.graph.nodes import add_constant, take_place
from pom_export.graph.quantized.block_weights import FLOAT8, QuantizedWeight, unpack_blocks
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT, constant_of, is_symmetric
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS

FLOAT32: Final = "float32"
BLOCKS: Final = "int8, a scale per block"
TENSOR: Final = "uint8, a scale per call"
FIXED: Final = "int8, a scale for all calls"
FIXED_FLOAT8: Final = "fp8, a scale for all calls"
_FIXED: Final = {ir.DataType.INT8: FIXED, ir.DataType.FLOAT8E4M3FN: FIXED_FLOAT8}
_BITS: Final = (4, 8)
_BITS_OF: Final = {ir.DataType.INT8: 8, ir.DataType.FLOAT8E4M3FN: 8, ir.DataType.INT4: 4}
_SUFFIXES: Final = (".int4", ".int8", ".fp8")
_MATRIX: Final = 2


@dataclass(frozen=True)
class QuantizedProduct:
    """A product of activations with a quantized weight, as a file computes it.

    Attributes:
        name: the name of the node that makes its output.
        weight: the weight.
        initializer: the name that the weight had as float32, as far as the name of the integers tells.
        activations: how activations are rounded before they are multiplied: FLOAT32 (not at all), BLOCKS, TENSOR, FIXED
            or FIXED_FLOAT8.
        input: the activations, (..., K).
        output: the product, (..., N).
        activation_scale: the scale for all calls; None for the other ways.
    """

    name: str
    weight: QuantizedWeight
    initializer: str
    activations: str
    input: ir.Value
    output: ir.Value
    activation_scale: float | None = None

    @property
    def module(self) -> str:
        """The name of the module that it comes from."""
        return self.name.partition("/")[0] if "/" in self.name else ""

    @property
    def is_block_product(self) -> bool:
        """Whether it is a MatMulNBits; else it is in standard operators."""
        maker = self.output.producer()
        return maker is not None and maker.op_type == BLOCK_PRODUCT


def quantized_products(model: ir.Model) -> list[QuantizedProduct]:
    """Return a graph's quantized products in the forms that `quantize` writes, in order.

    Raises:
        InputError: one of them has scales that are no positive numbers, or integers of the wrong shape.
    """
    found = []
    for node in model.graph:
        read = _READERS.get((node.domain, node.op_type))
        product = read(node) if read is not None else None
        if product is not None:
            _check(product)
            found.append(product)
    return found


def dequantize(model: ir.Model, *, blocks: bool = True) -> list[QuantizedProduct]:
    """Make quantized products of a graph floating-point ones, with the weights that their values stand for.

    A product of float16 stays one of float16.

    Args:
        model: the graph.
        blocks: whether also those that are MatMulNBits.

    Returns:
        The products that there were.

    Raises:
        InputError: as for `quantized_products`.
    """
    products = [each for each in quantized_products(model) if blocks or not each.is_block_product]
    for product in products:
        last = product.output.producer()
        assert last is not None
        dtype = product.output.dtype or ir.DataType.FLOAT
        numbers = product.weight.dequantized().astype(dtype.numpy())
        weight = add_constant(model.graph, product.initializer or f"{product.name}.weight", numbers, dtype)
        node = ir.node("MatMul", [product.input, weight])
        model.graph.insert_before(last, node)
        take_place(product.output, node.outputs[0])
        _remove_unused(model.graph, last)
        node.name = product.name
    if not any(node.domain == MICROSOFT for node in model.graph.all_nodes()):
        model.opset_imports.pop(MICROSOFT, None)
    return products


def _remove_unused(graph: ir.Graph, last: ir.Node) -> None:
    """Remove a node whose outputs nothing uses, and everything that only it needed."""
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node.graph is not graph or any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        sources = [value for value in node.inputs if value is not None]
        graph.remove(node, safe=True)
        for value in sources:
            if (maker := value.producer()) is not None:
                waiting.append(maker)
            elif value.is_initializer() and not value.uses() and value.name is not None:
                graph.initializers.pop(value.name, None)


def _block_product(node: ir.Node) -> QuantizedProduct | None:
    """Read a MatMulNBits without zero points; with other inputs, it is another tool's."""
    given = node.inputs[0]
    packed, scales = (constant_of(value) for value in node.inputs[1:3])
    if given is None or packed is None or scales is None or any(value is not None for value in node.inputs[3:]):
        return None
    bits, block, rows, columns = _whole(node, "bits", 4), *(_whole(node, name) for name in ("block_size", "K", "N"))
    blocks = -(-rows // block) if block > 0 else 0
    expected = (columns, blocks, block * bits // 8)
    if bits not in _BITS or packed.dtype != np.uint8 or packed.size != np.prod(expected, dtype=int):
        raise _unusable(node, f"integers of shape {packed.shape}, where {expected} are needed")
    if scales.size != columns * blocks:
        raise _unusable(node, f"{scales.size} scales, where {columns * blocks} are needed")
    weight = unpack_blocks(packed.reshape(expected), scales, rows, bits, block)
    activations = BLOCKS if _whole(node, "accuracy_level") == INTEGER_ACTIVATIONS else FLOAT32
    return QuantizedProduct(node.name or "", weight, _initializer(node.inputs[1]), activations, given, node.outputs[0])


def _dynamic_product(node: ir.Node) -> QuantizedProduct | None:
    """Read Mul(Cast(MatMulInteger), Mul(scale, scales)), as `write_dynamic_product` and ONNX Runtime write it."""
    for value, other in (node.inputs, tuple(reversed(node.inputs))):
        cast, both = _maker(value, "Cast"), _maker(other, "Mul")
        whole = _maker(cast.inputs[0], "MatMulInteger") if cast is not None else None
        if whole is None or both is None:
            continue
        rounding = _maker(whole.inputs[0], "DynamicQuantizeLinear")
        values = constant_of(whole.inputs[1])
        scales = [array for value in both.inputs if (array := constant_of(value)) is not None]
        if rounding is None or values is None or len(scales) != 1 or rounding.inputs[0] is None:
            continue
        zero = constant_of(whole.inputs[3]) if len(whole.inputs) > 3 else None
        if values.dtype != np.int8 or (zero is not None and zero.any()):
            continue
        columns = values.shape[1]
        if scales[0].size not in {1, columns}:
            raise _unusable(node, f"{scales[0].size} scales, where {columns} are needed")
        spread = np.broadcast_to(scales[0].reshape(1, -1), (1, columns)).astype(np.float32)
        weight = QuantizedWeight(values, spread, 8, len(values))
        name = _initializer(whole.inputs[1])
        return QuantizedProduct(node.name or "", weight, name, TENSOR, rounding.inputs[0], node.outputs[0])
    return None


def _scaled_product(node: ir.Node) -> QuantizedProduct | None:
    """Read MatMul(DQ(Q(x)), DQ(weight)) or MatMul(x, DQ(weight)), as `write_scaled_product` writes them."""
    given, restored = node.inputs[0], _maker(node.inputs[1], "DequantizeLinear")
    weight = _scaled_weight(restored) if restored is not None else None
    if restored is None or weight is None or given is None:
        return None
    activations, scale = FLOAT32, None
    if (rounding := _rounding_before(given)) is not None:
        size, kind = constant_of(rounding.inputs[1]), rounding.outputs[0].dtype
        if size is None or size.size != 1 or kind not in _FIXED or rounding.inputs[0] is None:
            return None
        activations, scale, given = _FIXED[kind], float(size.reshape(())), rounding.inputs[0]
    name = _initializer(restored.inputs[0])
    return QuantizedProduct(node.name or "", weight, name, activations, given, node.outputs[0], scale)


def _rounding_before(value: ir.Value) -> ir.Node | None:
    """Return the Q of a symmetric pair DQ(Q(x)) that makes a value; None if another node makes it."""
    back = _maker(value, "DequantizeLinear")
    rounding = _maker(back.inputs[0], "QuantizeLinear") if back is not None else None
    if back is None or rounding is None or not (is_symmetric(back) and is_symmetric(rounding)):
        return None
    one, other = (constant_of(each.inputs[1]) for each in (rounding, back))
    return rounding if one is not None and other is not None and np.array_equal(one, other) else None


def _scaled_weight(restored: ir.Node) -> QuantizedWeight | None:
    """Return the weight that a DequantizeLinear restores: a scale per column, per tensor, or per block of rows."""
    values, scales = (constant_of(value) for value in restored.inputs[:2])
    kind = restored.inputs[0].dtype if restored.inputs[0] is not None else None
    bits = None if kind is None else _BITS_OF.get(kind)
    if values is None or scales is None or bits is None or values.ndim != _MATRIX or not is_symmetric(restored):
        return None
    numbers = values if values.dtype == FLOAT8 else values.astype(np.int8)
    axis, block = _whole(restored, "axis", 1) % _MATRIX, _whole(restored, "block_size")
    rows, columns = numbers.shape
    if scales.size > 1 and axis != (0 if block else 1):
        return None  # a scale per row, or blocks of columns: another tool's
    block = block or rows
    expected = (-(-rows // block), columns)
    if scales.size not in {1, expected[0] * expected[1]}:
        raise _unusable(restored, f"{scales.size} scales, where {expected[0] * expected[1]} are needed")
    spread = np.broadcast_to(scales.reshape((1, 1) if scales.size == 1 else expected), expected).astype(np.float32)
    return QuantizedWeight(numbers, spread, bits, block)


_READERS: Final[dict[tuple[str, str], Callable[[ir.Node], QuantizedProduct | None]]] = {
    (MICROSOFT, BLOCK_PRODUCT): _block_product,
    ("", "Mul"): _dynamic_product,
    ("", "MatMul"): _scaled_product,
}


def _maker(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator else None


def _whole(node: ir.Node, name: str, default: int = 0) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _initializer(value: ir.Value | None) -> str:
    name = (value.name if value is not None else None) or ""
    return next((name.removesuffix(suffix) for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _check(product: QuantizedProduct) -> None:
    scales = product.weight.scales
    wrong = scales[~np.isfinite(scales)]
    if wrong.size:
        raise InputError(
            f"the weight of {product.name} has {wrong.size} scales that are no finite numbers, such as {wrong.flat[0]}",
            "Quantize the original file again",
        )


def _unusable(node: ir.Node, what: str) -> InputError:
    return InputError(f"{node.op_type} {node.name!r} has {what}", "The file is damaged: quantize the original again")
