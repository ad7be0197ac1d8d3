"""The nodes of our ops in a graph."""

from __future__ import annotations

import onnx_ir as ir

from pom_export import contract


def aggregation_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the model's aggregation nodes, in order; gated ones not among them."""
    return _nodes(model, contract.OP_NAME)


def gated_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the model's gated aggregation nodes, in order."""
    return _nodes(model, contract.GATED_OP_NAME)


def _nodes(model: ir.Model, name: str) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (contract.DOMAIN, name)]
