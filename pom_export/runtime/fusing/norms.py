"""Norms of the last axis, in the operators that have a name and in those that exporters write for RMS norms."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.nodes import only_user
from pom_export.runtime.fusing.constants import array_of, both_ways, is_vector, maker_of, number_of
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.steps import Norm, Step

_EPSILON: Final = 1e-5
_NAMED: Final = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_RANK: Final = 3


def named_norm(node: ir.Node, shapes: Shapes) -> Norm | None:
    """Read LayerNormalization, RMSNormalization or SimplifiedLayerNormalization of the last axis in float32."""
    x, gain, bias = (*node.inputs, None, None)[:3]
    shape = shapes.of(x)
    if node.op_type not in _NAMED or x is None or shape is None or any(value.uses() for value in node.outputs[1:]):
        return None
    numbers = {name: attribute.value for name, attribute in node.attributes.items()}
    centered, width = node.op_type == _NAMED[0], shape[-1]
    if numbers.get("axis", -1) not in {-1, _RANK - 1} or numbers.get("stash_type", 1) != 1:
        return None
    if not is_vector(gain, width) or (bias is not None and not (centered and is_vector(bias, width))):
        return None
    epsilon = float(numbers.get("epsilon", _EPSILON))
    return Norm((node,), x, node.outputs[0], width, width, epsilon, centered, gain, bias)


def rms_norm(node: ir.Node, shapes: Shapes) -> Norm | None:
    """Read x / sqrt(mean(x^2) + epsilon), or x * (1 / sqrt(mean(x^2) + epsilon))."""
    if node.op_type == "Div":
        x, root = node.inputs
        return _norm(node, x, root, (), shapes)
    for x, factor in both_ways(node):
        inverse = maker_of(factor, "Reciprocal")
        if inverse is not None and (found := _norm(node, x, inverse.inputs[0], (inverse,), shapes)) is not None:
            return found
    return None


def _norm(
    node: ir.Node, x: ir.Value | None, root: ir.Value | None, between: tuple[ir.Node, ...], shapes: Shapes
) -> Norm | None:
    shape, sqrt = shapes.of(x), maker_of(root, "Sqrt")
    added = maker_of(sqrt.inputs[0], "Add") if sqrt is not None else None
    if x is None or shape is None or sqrt is None or added is None:
        return None
    for inner, constant in both_ways(added):
        mean, epsilon = maker_of(inner, "ReduceMean"), number_of(constant)
        if mean is None or epsilon is None or not _is_of_last_axis(mean):
            continue
        square = _square(mean.inputs[0], x)
        if square is not None:
            nodes = (square, mean, added, sqrt, *between, node)
            return Norm(nodes, x, node.outputs[0], shape[-1], shape[-1], epsilon)
    return None


def _square(value: ir.Value | None, x: ir.Value) -> ir.Node | None:
    """Return the node that makes x^2; None if another one makes the value."""
    power = maker_of(value, "Pow")
    if power is not None:
        return power if power.inputs[0] is x and number_of(power.inputs[1]) == 2 else None
    product = maker_of(value, "Mul")
    return product if product is not None and all(each is x for each in product.inputs) else None


def _is_of_last_axis(mean: ir.Node) -> bool:
    given = mean.attributes.get("axes")
    keepdims = mean.attributes.get("keepdims")
    array = array_of(mean.inputs[1]) if len(mean.inputs) > 1 else None
    axes = list(given.as_ints()) if given is not None else [] if array is None else array.reshape(-1).tolist()
    return axes in ([-1], [_RANK - 1]) and (keepdims is None or keepdims.as_int() == 1)


def scaled_norm(node: ir.Node, made: dict[ir.Value, Step]) -> Norm | None:
    """Read a product of a norm, which nothing else uses, with a constant for each channel."""
    for inner, gain in both_ways(node):
        norm = made.get(inner)
        if not isinstance(norm, Norm) or norm.gain is not None or not is_vector(gain, norm.width):
            continue
        if only_user(inner) is node:
            return replace(norm, nodes=(*norm.nodes, node), y=node.outputs[0], gain=gain)
    return None
