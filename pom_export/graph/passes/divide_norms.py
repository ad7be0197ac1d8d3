"""Write RMS normalisation as ONNX Runtime recognises it, which then computes it in a single node."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.nodes import add_constant, only_user, take_place
from pom_export.graph.precision.rules import is_constant

# From the factor 1 / sqrt(mean(x^2) + epsilon) back to x^2.
_MAKERS: Final = ("Reciprocal", "Sqrt", "Add", "ReduceMean", "Pow")


class DivideNormsPass(ir.passes.InPlacePass):
    """Turn `x * (1 / sqrt(mean(x^2) + epsilon))` into `x / sqrt(mean(x^2) + epsilon) * scale`.

    torch's exporter writes the first. ONNX Runtime fuses the second into SimplifiedLayerNormalization, one node instead
    of six, but only if there is a scale. A norm without one gets ones, which runtimes that do not fuse it fold or
    multiply by: the result is the same except for one rounding less.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each such norm of the last axis."""
        ones = _Ones(model.graph)
        rewritten = [_divide(node, ones) for node in list(model.graph) if node.op_type == "Mul"]
        return ir.passes.PassResult(model, modified=any(rewritten))


class _Ones:
    """Scales of ones, each added once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._known: dict[tuple[int, ir.DataType], ir.Value] = {}

    def get(self, width: int, dtype: ir.DataType) -> ir.Value:
        if (width, dtype) not in self._known:
            ones = np.ones(width, dtype.numpy())
            self._known[width, dtype] = add_constant(self._graph, f"ones_{width}", ones, dtype)
        return self._known[width, dtype]


def _divide(product: ir.Node, ones: _Ones) -> bool:
    """Rewrite the norm that a product ends; return False if it ends none."""
    left, right = product.inputs
    pairs = ((left, right), (right, left))
    x, inverse = next(((x, node) for x, factor in pairs if (node := _inverse(factor, x)) is not None), (None, None))
    if x is None or inverse is None or x.dtype is None or not x.shape or not isinstance(x.shape[-1], int):
        return False
    output, graph, width = product.outputs[0], product.graph, x.shape[-1]
    assert isinstance(graph, ir.Graph)
    quotient = ir.node("Div", [x, inverse.inputs[0]], name=f"{product.name}/Div")
    graph.insert_before(product, quotient)
    if _is_scaled(output, width):
        take_place(output, quotient.outputs[0])
        graph.remove(product, safe=True)
    else:
        quotient.outputs[0].shape, quotient.outputs[0].type = output.shape, output.type
        product.replace_input_with(0, quotient.outputs[0])
        product.replace_input_with(1, ones.get(width, x.dtype))
    graph.remove(inverse, safe=True)
    return True


def _inverse(factor: ir.Value | None, x: ir.Value | None) -> ir.Node | None:
    """Return the node that computes a factor, if that is 1 / sqrt(mean(x^2) + epsilon), of the last axis; else None."""
    made: list[ir.Node] = []
    value = factor
    for op_type in _MAKERS:
        node = None if value is None else value.producer()
        if node is None or node.op_type != op_type or node.domain or only_user(node.outputs[0]) is None:
            return None
        made.append(node)
        value = node.inputs[0]
    reciprocal, _, added, mean, power = made
    is_square = _number(power.inputs[1]) == 2
    has_epsilon = _number(added.inputs[1]) is not None
    return reciprocal if value is x and is_square and has_epsilon and _is_of_last_axis(mean) else None


def _is_of_last_axis(mean: ir.Node) -> bool:
    keepdims = mean.attributes.get("keepdims")
    axis, source = _number(mean.inputs[1]) if len(mean.inputs) > 1 else None, mean.inputs[0]
    last = (-1, len(source.shape) - 1) if source is not None and source.shape is not None else (-1,)
    return axis in last and (keepdims is None or keepdims.as_int() == 1)


def _number(value: ir.Value | None) -> float | None:
    """Return the value of a constant with a single element."""
    if value is None or not is_constant(value):
        return None
    array = value.const_value.numpy() if value.const_value is not None else np.empty(0)
    return float(array.reshape(())) if array.size == 1 else None


def _is_scaled(value: ir.Value, width: int) -> bool:
    """Return whether the only use of a value is a product with a weight for each channel."""
    user = only_user(value)
    if user is None or user.op_type != "Mul" or user.domain:
        return False
    scales = [other for other in user.inputs if other is not None and other is not value]
    return bool(scales) and is_constant(scales[0]) and list(scales[0].shape or ()) == [width]
