"""Activations, sums and products of values of one shape, and products with a number."""

from __future__ import annotations

import math

import onnx_ir as ir

from pom_export.runtime.fusing.constants import both_ways, maker_of, same_float32, scalar_of
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.steps import Activation, Elementwise, Epilogue


def elementwise(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    """Read one of them; of several readings, the one that covers the most nodes."""
    if node.domain:
        return None
    if node.op_type in {"Gelu", "Relu"}:
        return _named(node, shapes)
    if node.op_type == "Add":
        return _of_two(node, shapes)
    if node.op_type != "Mul":
        return None
    return _erf_gelu(node, shapes) or _silu(node, shapes) or _scaled(node, shapes) or _of_two(node, shapes)


def _step(nodes: tuple[ir.Node, ...], x: ir.Value | None, epilogue: Epilogue, shapes: Shapes) -> Elementwise | None:
    shape = shapes.of(x)
    if x is None or shape is None:
        return None
    return Elementwise(nodes, x, nodes[-1].outputs[0], shape[-1], shape[-1], epilogue=epilogue)


def _named(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    approximate = node.attributes.get("approximate")
    if approximate is not None and approximate.as_string() != "none":
        return None
    activation = Activation.GELU if node.op_type == "Gelu" else Activation.RELU
    return _step((node,), node.inputs[0], Epilogue(activation), shapes)


def _of_two(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    """Read the sum or the product of two values of one shape."""
    one, other = node.inputs
    if shapes.of(one) is None or shapes.of(one) != shapes.of(other):
        return None
    epilogue = Epilogue(added=other) if node.op_type == "Add" else Epilogue(multiplied=other)
    return _step((node,), one, epilogue, shapes)


def _scaled(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    for x, factor in both_ways(node):
        if (number := scalar_of(factor)) is not None:
            return _step((node,), x, Epilogue(factor=number), shapes)
    return None


def _silu(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    for x, factor in both_ways(node):
        sigmoid = maker_of(factor, "Sigmoid")
        if sigmoid is not None and sigmoid.inputs[0] is x:
            return _step((sigmoid, node), x, Epilogue(Activation.SILU), shapes)
    return None


def _erf_gelu(node: ir.Node, shapes: Shapes) -> Elementwise | None:
    """Read x * (0.5 * (1 + erf(x / sqrt(2)))), its factors in any order."""
    for one, other in both_ways(node):
        # x * (half), (x * 0.5) * sum, or (x * sum) * 0.5: find the two products and three factors.
        product = maker_of(one, "Mul")
        if product is None:
            continue
        for first, second in both_ways(product):
            factors = (first, second, other)
            halves = [each for each in factors if scalar_of(each) == 0.5]
            sums = [found for each in factors if (found := _one_plus_erf(each)) is not None]
            rest = [each for each in factors if scalar_of(each) != 0.5 and _one_plus_erf(each) is None]
            if len(halves) == 1 and len(sums) == 1 and len(rest) == 1 and sums[0][0] is rest[0]:
                return _step((*sums[0][1], product, node), rest[0], Epilogue(Activation.GELU), shapes)
    return None


def _one_plus_erf(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]] | None:
    """Return x and the nodes of 1 + erf(x / sqrt(2)), if that is how a value is made."""
    added = maker_of(value, "Add")
    for inner, one in both_ways(added) if added is not None else ():
        erf = maker_of(inner, "Erf")
        if added is None or erf is None or scalar_of(one) != 1:
            continue
        for scaled in (maker_of(erf.inputs[0], "Div"), maker_of(erf.inputs[0], "Mul")):
            x = None if scaled is None else _over_root_of_2(scaled)
            if scaled is not None and x is not None:
                return x, (scaled, erf, added)
    return None


def _over_root_of_2(node: ir.Node) -> ir.Value | None:
    """Return x, if a Div or Mul makes x / sqrt(2)."""
    if node.op_type == "Div":
        x, number = node.inputs
        return x if same_float32(scalar_of(number), math.sqrt(2)) else None
    return next((x for x, number in both_ways(node) if same_float32(scalar_of(number), math.sqrt(0.5))), None)
