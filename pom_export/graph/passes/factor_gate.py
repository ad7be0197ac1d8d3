"""Multiply a gate of heads by each head's part of the output projection, instead of gate, then project."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pom_export.graph.passes.selections import Selection, find_selections, only_user


class FactorGatePass(ir.passes.InPlacePass):
    """Turn `W_a (s * a)` into `s V`, where a gate s of S < C heads stands over one aggregate a of a batch entry.

    V (S, d) holds for each head its rows of W_a (C, d) applied to its channels of a, so the product of N tokens by
    (C, d) shrinks to one by (S, d). Exact but for rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each such product."""
        modified = False
        for selection in find_selections(model):
            is_mean = selection.aggregation.attributes["mode"].as_string() == "mean"
            if is_mean and selection.gates < selection.channels:
                modified |= _factor(model.graph, selection, only_user(selection.selected))
        return ir.passes.PassResult(model, modified=modified)


def _factor(graph: ir.Graph, selection: Selection, product: ir.Node | None) -> bool:
    """Replace the product that follows a selection; False where it is none with a constant weight."""
    if product is None or product.op_type != "MatMul" or product.inputs[0] is not selection.selected:
        return False
    weight = product.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer() or only_user(weight) is not product:
        return False
    gates, width = selection.gates, selection.channels // selection.gates
    array = weight.const_value.numpy()
    if array.ndim != 2:
        return False
    aggregate, output = selection.aggregation.outputs[0], product.outputs[0]
    assert aggregate.shape is not None
    batch, dim = aggregate.shape[0], array.shape[1]

    def add(op_type: str, inputs: list[ir.Value], shape: list[int | ir.SymbolicDim], name: str) -> ir.Value:
        node = ir.node(op_type, inputs, name=name)
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(shape), output.type
        graph.insert_before(product, node)
        return node.outputs[0]

    # Batched products: (B, S, 1, C / S) by (S, C / S, d).
    parts = array.reshape(gates, width, dim)
    weight.const_value, weight.shape = ir.tensor(parts, weight.dtype), ir.Shape(parts.shape)
    name = product.name or ""
    cut = _sizes(graph, f"{name}/heads", [0, gates, 1, width])
    heads = add("Reshape", [aggregate, cut], [batch, gates, 1, width], f"{name}/Reshape")
    projected = add("MatMul", [heads, weight], [batch, gates, 1, dim], f"{name}/heads/MatMul")
    whole = _sizes(graph, f"{name}/values", [0, gates, dim])
    values = add("Reshape", [projected, whole], [batch, gates, dim], f"{name}/Reshape_1")
    product.replace_input_with(0, selection.gate)
    product.replace_input_with(1, values)
    return True


def _sizes(graph: ir.Graph, name: str, sizes: list[int]) -> ir.Value:
    """Add a constant for a Reshape, whose 0 stands for the input's own size."""
    value = ir.val(name, const_value=ir.tensor(np.array(sizes, np.int64)))
    graph.register_initializer(value)
    return value
