"""Constants of a graph, as matching nodes asks for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.nodes import only_user


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer that no caller can override."""
    return value is not None and value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def array_of(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the array of a constant, from an initializer or a Constant node; None if a value is none."""
    if value is None:
        return None
    if is_constant(value):
        assert value.const_value is not None
        return value.const_value.numpy()
    maker = value.producer()
    if maker is None or maker.op_type != "Constant" or maker.domain:
        return None
    attribute = maker.attributes.get("value")
    return attribute.as_tensor().numpy() if attribute is not None else None


def number_of(value: ir.Value | None) -> float | None:
    """Return the number of a constant that has one element; None if a value is none."""
    if value is None or (value.shape is not None and _size(value) != 1):
        return None
    array = array_of(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def scalar_of(value: ir.Value | None) -> float | None:
    """Return the number of a float32 constant that has one element and does not raise the rank of what it scales."""
    number = number_of(value)
    if number is None or value is None or value.dtype != ir.DataType.FLOAT or len(value.shape or ()) > 3:
        return None
    return number


def is_vector(value: ir.Value | None, width: int) -> bool:
    """Return whether a value is a float32 constant of `width` numbers along the last axis."""
    if value is None or not is_constant(value) or value.dtype != ir.DataType.FLOAT or value.shape is None:
        return False
    sizes = list(value.shape)
    return 1 <= len(sizes) <= 3 and sizes[-1] == width and all(size == 1 for size in sizes[:-1])


def both_ways(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """Return the two inputs of a commutative node in both orders; none if it does not have two."""
    if len(node.inputs) != 2:
        return []
    one, other = node.inputs
    return [] if one is None or other is None else [(one, other), (other, one)]


def maker_of(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the standard node of a kind that makes a value for a single user; None if there is none."""
    if value is None or only_user(value) is None:
        return None
    node = value.producer()
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _size(value: ir.Value) -> int:
    assert value.shape is not None
    sizes = [size for size in value.shape if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(value.shape) else -1


def same_float32(number: float | None, wanted: float) -> bool:
    """Return whether a number is another but for float32's rounding, of either."""
    return number is not None and bool(np.isclose(number, wanted, rtol=1e-6, atol=0))
