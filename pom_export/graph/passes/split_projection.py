"""Project context and gate with separate weights, instead of splitting the result of one product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from pom_export.graph.nodes import add_constant, aggregation_nodes, only_user, own_weight, take_place


class SplitProjectionPass(ir.passes.InPlacePass):
    """Turn `Split(x @ W)` before an aggregation into one product per part.

    Splitting a tensor copies the parts, which costs two passes over memory; splitting the weight costs nothing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split each such weight."""
        modified = False
        for node in aggregation_nodes(model):
            split = node.inputs[0].producer() if node.inputs[0] is not None else None
            if split is not None and split.op_type == "Split" and split.inputs[0] is not None:
                modified |= _cut(model.graph, split, split.inputs[0].producer())
        return ir.passes.PassResult(model, modified=modified)


def _cut(graph: ir.Graph, split: ir.Node, product: ir.Node | None) -> bool:
    """Replace a product and the split of its last axis; return False if the nodes are something else."""
    if product is None or product.op_type != "MatMul" or only_user(product.outputs[0]) is not split:
        return False
    array, axis = own_weight(product), split.attributes.get("axis")
    sizes = [value.shape[-1] if value.shape else None for value in split.outputs]
    rank = len(product.outputs[0].shape or ())
    if array is None or axis is None or axis.as_int() not in {-1, rank - 1}:
        return False
    ends = np.cumsum([size for size in sizes if isinstance(size, int)])
    if len(ends) < len(sizes) or ends[-1] != array.shape[1]:
        return False
    x, weight = product.inputs
    assert weight is not None
    for index, (output, columns) in enumerate(zip(split.outputs, np.split(array, ends[:-1], axis=1), strict=True)):
        # A view, so that nothing is copied before the file is written.
        part = add_constant(graph, f"{weight.name}.{index}", columns, weight.dtype)
        projected = ir.node("MatMul", [x, part], name=f"{product.name}.{index}")
        graph.insert_before(product, projected)
        take_place(output, projected.outputs[0])
    graph.remove([split, product], safe=True)
    del graph.initializers[weight.name or ""]
    return True
