"""Multiply each head's gate by its part of the output projection, instead of gating and then projecting."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pom_export.graph.nodes import add_constant, only_user, own_weight
from pom_export.graph.passes.selections import Selection, find_selections

_Shape = list[int | ir.SymbolicDim]


class FactorGatePass(ir.passes.InPlacePass):
    """Turn `W_a (s * a)` into `s V`, where a gate s of S < C heads multiplies one aggregate a per batch entry.

    For each head, V (S, d) contains the product of its rows of W_a (C, d) with its channels of a, so that multiplying N
    tokens by (C, d) becomes multiplying them by (S, d). The result is the same except for rounding. The pass is not
    used for float16, whose largest value is 65504: V is computed before the gate is applied, so a gate that is almost
    closed would no longer keep the product in range.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each such product."""
        modified = False
        for selection in find_selections(model):
            if _is_worth_it(selection):
                modified |= _factor(model.graph, selection, only_user(selection.selected))
        return ir.passes.PassResult(model, modified=modified)


def _is_worth_it(selection: Selection) -> bool:
    """Return whether the rewritten graph needs fewer multiplications."""
    mean = selection.aggregation.attributes["mode"].as_string() == "mean"
    one_token = selection.gate.shape is not None and selection.gate.shape[1] == 1
    return mean and not one_token and selection.gates < selection.channels


def _factor(graph: ir.Graph, selection: Selection, product: ir.Node | None) -> bool:
    """Replace the product that follows a selection; return False if it does not have a constant weight."""
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not selection.selected:
        return False
    array, weight = own_weight(product), product.inputs[1]
    if array is None or weight is None:
        return False
    gates, width = selection.gates, selection.channels // selection.gates
    aggregate, output = selection.aggregation.outputs[0], product.outputs[0]
    assert aggregate.shape is not None
    batch, dim = aggregate.shape[0], array.shape[1]

    def add(
        op_type: str, inputs: list[ir.Value], shape: list[int | ir.SymbolicDim], **attributes: list[int]
    ) -> ir.Value:
        node = ir.node(op_type, inputs, attributes, name=f"{product.name}/{len(shapes)}/{op_type}")
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), output.type
        graph.insert_before(product, node)
        shapes.append(shape)
        return node.outputs[0]

    shapes: list[_Shape] = []
    # Heads first, (S, B, C / S) by (S, C / S, d): each head's rows of the weight are read once for all of the batch.
    parts = array.reshape(gates, width, dim)
    weight.const_value, weight.shape = ir.tensor(parts, weight.dtype), ir.Shape(parts.shape)
    sizes = add_constant(graph, f"{product.name}/heads", np.array([0, gates, width], np.int64))  # 0 keeps a size
    cut = add("Reshape", [aggregate, sizes], [batch, gates, width])
    heads = add("Transpose", [cut], [gates, batch, width], perm=[1, 0, 2])
    projected = add("MatMul", [heads, weight], [gates, batch, dim])
    values = add("Transpose", [projected], [batch, gates, dim], perm=[1, 0, 2])
    product.replace_input_with(0, selection.gate)
    product.replace_input_with(1, values)
    return True
