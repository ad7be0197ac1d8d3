"""Transpose after a product, not before it: ONNX Runtime crashes on half-precision files with the other order."""

from __future__ import annotations

import onnx_ir as ir

from pom_export.graph.nodes import cast_node, take_place

_MATRIX_RANK = 2


class DelayTransposePass(ir.passes.InPlacePass):
    """Turn `MatMul(Transpose(x), W)` into `Transpose(MatMul(x, W))`, where the batch moves behind other axes.

    A layer whose tokens come first, which is the default of nn.MultiheadAttention, begins like this. ONNX Runtime fuses
    such a pair (MatmulTransposeFusion). In half precision, where there is a Cast between the two on the CPU, it then
    crashes with a segmentation fault while loading the file; this was seen with 1.32, but not with 1.22. A product with
    a matrix only changes the last axis, so swapping it with the Transpose does not change any number.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite each such product."""
        products = [node for node in model.graph.all_nodes() if node.op_type == "MatMul" and _is_by_a_matrix(node)]
        delayed = [_delay(product) for product in products]
        return ir.passes.PassResult(model, modified=any(delayed))


def _is_by_a_matrix(product: ir.Node) -> bool:
    weight = product.inputs[1]
    return weight is not None and weight.shape is not None and len(weight.shape) == _MATRIX_RANK


def _delay(product: ir.Node) -> bool:
    """Move a Transpose from before a product to after it; return False if there is none of this kind."""
    cast = _producer(product.inputs[0], "Cast")
    transpose = _producer(cast.inputs[0] if cast else product.inputs[0], "Transpose")
    perm = list(transpose.attributes["perm"].as_ints()) if transpose and "perm" in transpose.attributes else []
    if transpose is None or not perm or perm != [*range(1, len(perm) - 1), 0, len(perm) - 1]:
        return False
    source, output, graph = transpose.inputs[0], product.outputs[0], product.graph
    assert source is not None
    assert graph is not None
    if cast:
        early = cast_node(source, ir.DataType(cast.attributes["to"].as_int()))
        early.name = f"{product.name}/Cast"
        graph.insert_before(product, early)
        source = early.outputs[0]
    first = ir.node("MatMul", [source, product.inputs[1]], name=product.name)
    first.outputs[0].shape, first.outputs[0].type = _shape_before(output.shape, perm), output.type
    turned = ir.node("Transpose", first.outputs, {"perm": perm}, name=f"{product.name}/Transpose")
    graph.insert_after(product, [first, turned])
    take_place(output, turned.outputs[0])
    graph.remove(product)
    return True


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type and node.domain == "" else None


def _shape_before(shape: ir.Shape | None, perm: list[int]) -> ir.Shape | None:
    """Return the shape of a Transpose's input, given the shape of its output."""
    return None if shape is None else ir.Shape([shape[perm.index(axis)] for axis in range(len(perm))])
