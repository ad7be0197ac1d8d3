"""Divide sums by the number of their tokens before they are multiplied by gates, not after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Evaluator
from pom_export.graph.nodes import only_user

_SUMS: Final = frozenset(("CumSum", "Einsum", "FusedMatMul", "MatMul", "ReduceSum"))
# Operators that pass a sum on.
_PASSING: Final = frozenset(("Cast", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_SCALINGS: Final = frozenset(("Div", "Mul"))


@dataclass(frozen=True)
class _Move:
    """A scaling that was moved.

    Attributes:
        scaling: the node, which is applied to a factor of the product now.
        product: the node that follows it.
        index: which of the scaling's inputs is scaled.
    """

    scaling: ir.Node
    product: ir.Node
    index: int


class EarlyDivisions:
    """The scalings `gate * sum / n` of a graph, as `gate * (sum / n)`, whose second factor may be a mean.

    Args:
        evaluator: of the graph, whose nodes are moved.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._graph = evaluator.graph
        self._moves = [move for node in list(evaluator.graph) if (move := self._moved(evaluator, node)) is not None]

    def put_back(self) -> None:
        """Undo the moves of scalings that are still in use."""
        for move in self._moves:
            if move.scaling.graph is self._graph and move.product.graph is self._graph:
                self._swap(move.scaling, move.index, move.product, move.product.outputs[0].shape)

    def _moved(self, evaluator: Evaluator, scaling: ir.Node) -> _Move | None:
        if scaling.domain or scaling.op_type not in _SCALINGS:
            return None
        for index in (0,) if scaling.op_type == "Div" else (0, 1):
            scaled, other = scaling.inputs[index], scaling.inputs[1 - index]
            product = None if scaled is None else scaled.producer()
            if scaled is None or other is None or product is None or product.graph is not self._graph:
                continue
            if product.op_type != "Mul" or product.domain:
                continue
            total = next((each for each in product.inputs if each is not None and _is_sum(evaluator, each)), None)
            if total is not None and only_user(scaled) is scaling and _is_number(other, total):
                self._swap(product, list(product.inputs).index(total), scaling, total.shape)
                return _Move(scaling, product, index)
        return None

    def _swap(self, first: ir.Node, index: int, second: ir.Node, shape: ir.Shape | None) -> None:
        """Apply the second of two nodes, which follows the first, to an input of the first: its result has a shape."""
        between, last = first.outputs[0], second.outputs[0]
        scaled = first.inputs[index]
        position = list(second.inputs).index(between)
        second.replace_input_with(position, scaled)
        ir.convenience.replace_all_uses_with(last, between, replace_graph_outputs=True)
        first.replace_input_with(index, last)
        between.name, last.name = last.name, between.name
        last.shape, between.shape = shape, last.shape
        self._graph.remove(first)
        self._graph.insert_after(second, first)


def _is_sum(evaluator: Evaluator, value: ir.Value) -> bool:
    """Return whether a value is a sum of data that depends on data."""
    node = value.producer()
    while node is not None and node.op_type in _PASSING and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or node.op_type not in _SUMS or not evaluator.depends_on_data(value):
        return False
    # The product of a weight is a projection.
    weight = next((each for each in node.inputs[:2] if each is not None and each.is_initializer()), None)
    return node.op_type in {"CumSum", "ReduceSum"} or weight is None


def _is_number(value: ir.Value, total: ir.Value) -> bool:
    """Return whether a value has one number for all channels of a sum, which is of a known shape."""
    shape, own = value.shape, total.shape
    if shape is None or own is None or len(shape) > len(own):
        return False
    aligned = zip(reversed(list(shape)), reversed(list(own)), strict=False)
    return all(size == 1 or size == wanted for size, wanted in aligned) and list(shape) != list(own)
