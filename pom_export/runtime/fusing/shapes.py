"""The shapes of activations, as far as a file or the steps found so far tell them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import onnx_ir as ir

from pom_export.graph.exported_model import is_past, present_name
from pom_export.graph.nodes import is_aggregation

# A fixed number, or a name and the graph's inputs that decide it.
Rows = int | tuple[str, frozenset[str]]
Shape = tuple[Rows, int | str, int]
_RANK: Final = 3
_NOTHING: Final = frozenset[str]()


class Shapes:
    """Shapes (B, N, width) of float32 values of a graph, of which equal ones have equal sizes in every call.

    Tokens are equal if their names are. Rows are, if the same inputs of the graph decide them too: callers may give one
    input a single row, which stands for all rows of the others.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._deciding = _deciding_inputs(graph)
        self._made: dict[ir.Value, Shape] = {}

    def of(self, value: ir.Value | None) -> Shape | None:
        """Return the shape of a value; None if it is not float32, has another rank, or a size is unknown."""
        if value is None:
            return None
        if value in self._made:
            return self._made[value]
        if value.dtype != ir.DataType.FLOAT or value.shape is None or len(value.shape) != _RANK:
            return None
        rows, tokens, width = (size if isinstance(size, int) else size.value for size in value.shape)
        if rows is None or tokens is None or not isinstance(width, int) or width < 1:
            return None
        return rows if isinstance(rows, int) else (rows, self._deciding.get(value, _NOTHING)), tokens, width

    def make(self, value: ir.Value, x: ir.Value, width: int) -> None:
        """Note that a value has the shape of x, but for its last size."""
        shape = self.of(x)
        assert shape is not None
        self._made[value] = (*shape[:2], width)

    def declared(self, value: ir.Value) -> ir.Shape:
        """Return the shape of a value as a graph has it."""
        shape = self.of(value)
        assert shape is not None
        rows, tokens, width = shape
        return ir.Shape([rows if isinstance(rows, int) else rows[0], tokens, width])


def values_used(node: ir.Node) -> Iterator[ir.Value | None]:
    """Yield the values that a node uses, itself or in its nested graphs."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type is ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            yield from graph.outputs
            for inner in graph:
                yield from values_used(inner)


def _deciding_inputs(graph: ir.Graph) -> dict[ir.Value, frozenset[str]]:
    """Return the inputs of a graph that each value depends on and whose rows a caller chooses.

    A state does not count, since it always has a row for each row of the call. Nor does what else an aggregation reads
    than x, for the same reason.
    """
    outputs = {value.name for value in graph.outputs}
    found: dict[ir.Value, frozenset[str]] = {}
    for value in graph.inputs:
        name = value.name or ""
        is_state = is_past(name) and present_name(name) in outputs
        is_fixed = value.shape is not None and len(value.shape) > 0 and isinstance(value.shape[0], int)
        found[value] = _NOTHING if is_state or is_fixed else frozenset([name])
    for node in graph:
        used = node.inputs[:1] if is_aggregation(node) else values_used(node)
        deciding = _NOTHING.union(*(found.get(value, _NOTHING) for value in used if value is not None))
        found.update((value, deciding) for value in node.outputs)
    return found
