"""Split operators that ONNX Runtime's optimizer made of several, and put back those that nothing came of."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

_DOMAIN = "com.microsoft"
_SUM_AND_GELU = "BiasGelu"


@dataclass(frozen=True)
class _Parts:
    add: ir.Node
    gelu: ir.Node


class SplitOperators:
    """The sum and the GELU in each BiasGelu of a graph, as nodes of their own.

    The op computes the GELU itself, of the sum.

    Args:
        graph: the graph; its nodes are split.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        whole = [node for node in graph if node.domain == _DOMAIN and node.op_type == _SUM_AND_GELU]
        self._parts = [self._split(node) for node in whole]

    def put_back(self) -> None:
        """Join the parts whose GELU is still in use."""
        for parts in self._parts:
            made = parts.gelu.outputs[0]
            if parts.gelu.graph is self._graph and (made.is_graph_output() or list(made.uses())):
                self._join(parts)

    def _split(self, node: ir.Node) -> _Parts:
        output = node.outputs[0]
        add = ir.node("Add", list(node.inputs), name=f"{node.name}/Add")
        total = add.outputs[0]
        total.shape, total.type, total.name = output.shape, output.type, f"{output.name}/sum"
        gelu = ir.node("Gelu", [total], domain=_DOMAIN, name=node.name)
        self._replace(node, [add, gelu])
        return _Parts(add, gelu)

    def _join(self, parts: _Parts) -> None:
        whole = ir.node(_SUM_AND_GELU, list(parts.add.inputs), domain=_DOMAIN, name=parts.gelu.name)
        self._replace(parts.gelu, [whole])
        if not list(parts.add.outputs[0].uses()):
            self._graph.remove(parts.add, safe=True)

    def _replace(self, node: ir.Node, new: list[ir.Node]) -> None:
        old, made = node.outputs[0], new[-1].outputs[0]
        self._graph.insert_before(node, new)
        made.shape, made.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        old.name, made.name = None, name
