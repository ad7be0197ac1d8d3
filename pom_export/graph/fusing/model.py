"""Fuse all graphs of a model: its own, and those of branches."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes import common

from pom_export.graph.fusing.finding import Findings, find_aggregations
from pom_export.graph.fusing.preparing import Prepared
from pom_export.graph.fusing.rewriting import put_aggregation

_BRANCHES = "If"


class Fusion:
    """The aggregations of a model, and their replacement.

    Args:
        model: the model; its values have shapes. It is changed, until `put` puts back what is not needed.
        named: whether the names of its dimensions are its maker's.

    Attributes:
        findings: what was found.
    """

    def __init__(self, model: ir.Model, *, named: bool = True) -> None:
        self.findings = Findings()
        self._model = model
        self._prepared: list[Prepared] = []
        for graph, inside in [(model.graph, ""), *_graphs_in(model.graph, "")]:
            self._prepared.append(Prepared(graph, model.graph))
            found = find_aggregations(graph, model.graph, named=named)
            self.findings.left |= found.left
            if inside:
                reason = f"it is in the body of a {inside}, and only those outside, and in branches of an If, are fused"
                self.findings.left |= {each.features.node: reason for each in found.found}
            else:
                self.findings.found += found.found

    def put(self) -> None:
        """Put the op in place of the aggregations."""
        for found in self.findings.found:
            put_aggregation(self._model.graph, found)
        common.RemoveUnusedNodesPass()(self._model)
        for prepared in reversed(self._prepared):
            prepared.put_back()


def _graphs_in(graph: ir.Graph, inside: str) -> Iterator[tuple[ir.Graph, str]]:
    """Yield the graphs in a graph's nodes, each with the operator of a loop that it is in, if there is one."""
    for node in graph:
        for attribute in node.attributes.values():
            graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
            for inner in attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else graphs:
                loop = inside or ("" if node.op_type == _BRANCHES else node.op_type)
                yield inner, loop
                yield from _graphs_in(inner, loop)
