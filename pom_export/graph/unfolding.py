"""Inline a file's functions, other than our op's, so that their contents can be examined in place."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner

from pom_export import contract
from pom_export.graph.nodes import is_aggregation

_OURS = [(contract.DOMAIN, name) for name in (*contract.OP_NAMES, *contract.GATED_OP_NAMES)]


def unfolded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model in which every function except those of our ops is inlined.

    Runtimes do the same, and then run the resulting nodes of our ops in our kernels.
    """
    if all((function.domain, function.name) in _OURS for function in model.functions):
        return model
    return onnx.inliner.inline_selected_functions(model, _OURS, exclude=True)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its nested graphs."""
    for node in graph.node:
        yield node
        for inner in graphs_of(node):
            yield from all_nodes(inner)


def graphs_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs in a node: branches or loop bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def aggregations_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the aggregation nodes of a graph and of its nested graphs, in order."""
    return [node for node in all_nodes(graph) if is_aggregation(node)]
