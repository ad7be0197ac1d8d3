"""Store a weight once if the graph uses it both as it is and transposed: tied embeddings and output projections."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

_MATRIX = 2
# Smaller weights cost less than the node that transposes them.
_WORTH_BYTES = 4096


class ShareTransposedPass(ir.passes.InPlacePass):
    """Replace a weight that is the transpose of another by a Transpose of that one.

    Runtimes fold the Transpose when they load the model; the file stores the weight only once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace each such weight."""
        matrices = [value for value in model.graph.initializers.values() if _is_large_matrix(value)]
        shared: set[str] = set()
        for value in matrices:
            if any(node.op_type != "MatMul" or index != 1 for node, index in value.uses()):
                continue
            for other in matrices:
                if other is not value and other.name not in shared and _is_transpose(value, other):
                    self._replace(model.graph, value, other)
                    shared.add(value.name or "")
                    break
        return ir.passes.PassResult(model, modified=bool(shared))

    @staticmethod
    def _replace(graph: ir.Graph, value: ir.Value, other: ir.Value) -> None:
        first = next(node for node in graph if any(user is node for user, _ in value.uses()))
        transpose = ir.node("Transpose", [other], {"perm": [1, 0]}, name=f"{value.name}/Transpose")
        transpose.outputs[0].shape, transpose.outputs[0].type = value.shape, value.type
        graph.insert_before(first, transpose)
        name = value.name or ""
        ir.convenience.replace_all_uses_with(value, transpose.outputs[0])
        del graph.initializers[name]
        transpose.outputs[0].name = name


def _is_large_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    return tensor is not None and len(tensor.shape) == _MATRIX and tensor.nbytes >= _WORTH_BYTES


def _is_transpose(value: ir.Value, other: ir.Value) -> bool:
    one, two = value.const_value, other.const_value
    if one is None or two is None or one.dtype != two.dtype or list(one.shape) != list(two.shape)[::-1]:
        return False
    a, b = one.numpy(), two.numpy().T
    # A single row distinguishes most pairs, and is cheap to read if the weights are mapped from a file.
    return np.array_equal(a[0], b[0]) and np.array_equal(a, b)
