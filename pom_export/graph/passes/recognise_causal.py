"""Recognise a triangular mask of ones, and aggregate causally instead of with an N x N product."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import aggregation_nodes, take_place

# What changes no value, where it does not change the last two axes.
_TRANSPARENT = ("Unsqueeze", "Expand", "Cast", "Identity")

# What is added to a sum below this is there to keep it from 0.
_EPSILON = 1e-5


class RecogniseCausalPass(ir.passes.InPlacePass):
    """Turn `tril(ones) @ features / sum(tril(ones))` into the op's mode "causal".

    The mask is followed to where it is made: it must be the lower triangle of ones for every number of tokens, not
    only for those of the example. Dead nodes are left for a later pass.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the quotient by one node for each aggregation whose features are weighted so."""
        modified = False
        for node in aggregation_nodes(model):
            if node.attributes["mode"].as_string() != "features":
                continue
            found = 0
            for product, _ in list(node.outputs[0].uses()):
                quotient = _causal_quotient(node, product)
                if quotient is None:
                    continue
                causal = _causal_node(node, f"{node.name}_{found}" if found else node.name or "")
                found += 1
                model.graph.insert_before(quotient, causal)
                take_place(quotient.outputs[0], causal.outputs[0])
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _causal_node(features: ir.Node, name: str) -> ir.Node:
    attributes = [attr for attr in features.attributes.values() if attr.name != "mode"]
    return ir.Node(
        contract.DOMAIN,
        contract.OP_NAME,
        features.inputs,
        [*attributes, ir.AttrString("mode", "causal")],
        name=name,
    )


def _causal_quotient(features: ir.Node, product: ir.Node) -> ir.Node | None:
    """Return the division of `mask @ features` by the mask's sums, where the mask is causal."""
    if product.op_type != "MatMul" or product.inputs[1] is not features.outputs[0]:
        return None
    mask, x = product.inputs[0], features.inputs[0]
    if mask is None or x is None or not _fits(mask, x) or not _is_lower_triangle(mask):
        return None
    users = [user for user, index in product.outputs[0].uses() if user.op_type == "Div" and index == 0]
    if len(users) != 1 or not _comes_from_sum_of(users[0].inputs[1], mask):
        return None
    return users[0]


def _fits(mask: ir.Value, x: ir.Value) -> bool:
    """Return whether the mask is (1 or batch, N, N); that N is x's number of tokens, the product says itself."""
    if mask.shape is None or x.shape is None or len(mask.shape) != len(x.shape):
        return False
    return mask.shape[0] in {1, x.shape[0]} and mask.shape[1] == mask.shape[2]


def _comes_from_sum_of(value: ir.Value | None, mask: ir.Value) -> bool:
    """Return whether a divisor is the mask's sum over the last axis, plus an epsilon and but for zeros perhaps."""
    node = None if value is None else value.producer()
    if node is None:
        return False
    if node.op_type == "Cast":
        return _comes_from_sum_of(node.inputs[0], mask)
    if node.op_type == "Add":
        added = _constant(node.inputs[1])
        return added is not None and 0 <= added < _EPSILON and _comes_from_sum_of(node.inputs[0], mask)
    if node.op_type == "Where":
        # A row of the triangle never sums to 0: what stands in its place does not matter.
        return _is_zero_sum(node.inputs[0], mask) and _comes_from_sum_of(node.inputs[2], mask)
    if node.op_type != "ReduceSum" or node.inputs[0] is None:
        return False
    axes = _constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return axes in {-1, len(mask.shape or ()) - 1} and _source(node.inputs[0]) is _source(mask)


def _is_zero_sum(condition: ir.Value | None, mask: ir.Value) -> bool:
    node = None if condition is None else condition.producer()
    if node is None or node.op_type != "Equal":
        return False
    return _constant(node.inputs[1]) == 0 and _comes_from_sum_of(node.inputs[0], mask)


def _is_lower_triangle(value: ir.Value) -> bool:
    """Return whether a value is the lower triangle of ones, whatever its size."""
    value = _source(value)
    if value.const_value is not None and value.producer() is None:
        return _holds_triangle(value.const_value.numpy())
    node = value.producer()
    if node is None or node.inputs[0] is None:
        return False
    if node.op_type == "Slice":
        starts, steps = node.inputs[1], node.inputs[4:]
        from_start = _constant(starts) == 0 and all(_constant(step) == 1 for step in steps)
        return from_start and _is_lower_triangle(node.inputs[0])
    if node.op_type == "Not":
        return _is_triangle_of_ones(_source(node.inputs[0]), upper=1, diagonal=1)
    return _is_triangle_of_ones(value, upper=0, diagonal=0)


def _source(value: ir.Value) -> ir.Value:
    """Follow a value back over nodes that change neither its values nor its last two axes."""
    node = value.producer()
    while node is not None and node.op_type in _TRANSPARENT and node.inputs[0] is not None:
        if _last_axes(node.inputs[0]) != _last_axes(value) or _last_axes(value) is None:
            break
        value = node.inputs[0]
        node = value.producer()
    return value


def _last_axes(value: ir.Value) -> tuple[int | ir.SymbolicDim, ...] | None:
    shape = tuple(value.shape or ())
    return shape[-2:] if len(shape) > 1 else None


def _holds_triangle(array: np.ndarray[Any, Any]) -> bool:
    """Return whether an array is one square matrix, with ones on and below the diagonal and zeros above."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.size != array.shape[-1] ** 2:
        return False
    matrix = array.reshape(array.shape[-2:])
    return np.array_equal(matrix, np.tril(np.ones_like(matrix)))


def _is_triangle_of_ones(value: ir.Value, upper: int, diagonal: int) -> bool:
    node = value.producer()
    if node is None or node.op_type != "Trilu" or node.inputs[0] is None:
        return False
    attribute = node.attributes.get("upper")
    is_upper = 1 if attribute is None else attribute.as_int()
    diagonals = [_constant(k) for k in node.inputs[1:] if k is not None] or [0]
    return is_upper == upper and diagonals == [diagonal] and _is_ones(node.inputs[0])


def _is_ones(value: ir.Value) -> bool:
    """Return whether a value is 1 everywhere: a constant, or one spread to a shape."""
    if (constant := _constant(value)) is not None:
        return constant == 1
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return filled is not None and bool((filled.as_tensor().numpy() == 1).all())
    return node.op_type in _TRANSPARENT and node.inputs[0] is not None and _is_ones(node.inputs[0])


def _constant(value: ir.Value | None) -> float | None:
    """Return the one number that a constant holds, once or many times."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return None
    numbers = np.unique(tensor.numpy())
    return float(numbers[0]) if numbers.size == 1 else None
