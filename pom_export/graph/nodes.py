"""Find the nodes of our ops in a graph, and edit nodes and values in passes."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import numpy.typing as npt
import onnx_ir as ir

from pom_export import contract

_MATRIX_RANK = 2
# Inputs that are not placeholders although they have rank 1.
_RANK_1_INPUTS = ("gate_bias", "past_length")


class AnyNode(Protocol):
    """A node of onnx_ir or of onnx."""

    @property
    def domain(self) -> str: ...  # noqa: D102
    @property
    def op_type(self) -> str: ...  # noqa: D102


def op_of(node: AnyNode) -> str | None:
    """Return which of our ops a node has, under any of the op's names: OP_NAME or GATED_OP_NAME; None if neither."""
    if node.domain != contract.DOMAIN:
        return None
    names = {contract.OP_NAME: contract.OP_NAMES, contract.GATED_OP_NAME: contract.GATED_OP_NAMES}
    return next((op for op, known in names.items() if node.op_type in known), None)


def aggregation_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the model's aggregation nodes, without the gated ones, in order."""
    return _nodes(model, contract.OP_NAME)


def gated_nodes(model: ir.Model) -> list[ir.Node]:
    """Return the model's gated aggregation nodes, in order."""
    return _nodes(model, contract.GATED_OP_NAME)


def is_aggregation(node: AnyNode) -> bool:
    """Return whether a node is an aggregation, gated or not."""
    return op_of(node) is not None


def input_names(node: ir.Node) -> tuple[str, ...]:
    """Return the contract's names of an aggregation's inputs."""
    return contract.GATED_INPUTS if op_of(node) == contract.GATED_OP_NAME else contract.INPUTS


def input_named(node: ir.Node, name: str) -> ir.Value | None:
    """Return an input of an aggregation by its name; None if the node does not have it, or only a placeholder."""
    value = dict(zip(input_names(node), node.inputs, strict=False)).get(name)
    return None if value is None or (name not in _RANK_1_INPUTS and len(value.shape or ()) == 1) else value


def module_of(node: ir.Node) -> str:
    """Return the path of the module that a node comes from; the node's name if that is the model itself."""
    name = node.name or node.op_type
    return name.partition("/")[0] or name


def only_user(value: ir.Value) -> ir.Node | None:
    """Return the only node that uses a value; None if it has other uses or is an output of the graph."""
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def own_weight(product: ir.Node) -> npt.NDArray[Any] | None:
    """Return the constant matrix that a product multiplies by, if nothing else uses it."""
    weight = product.inputs[1]
    if weight is None or weight.const_value is None or not weight.is_initializer() or only_user(weight) is not product:
        return None
    array = weight.const_value.numpy()
    return array if array.ndim == _MATRIX_RANK else None


def add_constant(graph: ir.Graph, name: str, array: npt.NDArray[Any], dtype: ir.DataType | None = None) -> ir.Value:
    """Add an initializer under the given name, or the next numbered one that is free."""
    # A name in a branch would hide this one there.
    taken = graph.initializers.keys() | {value.name for node in graph.all_nodes() for value in node.outputs}
    numbered = (f"{name}_{i}" for i in itertools.count(1))
    free = next(text for text in itertools.chain([name], numbered) if text not in taken)
    value = ir.val(free, const_value=ir.tensor(array, dtype))
    graph.register_initializer(value)
    return value


def cast_node(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of a value that is not in any graph yet."""
    node = ir.node("Cast", [value], {"to": ir.AttrInt64("to", dtype)})
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Replace a value by another everywhere, including as an output of the graph and in name."""
    new.shape, new.type = old.shape, old.type
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    old.name, new.name = None, name


def _nodes(model: ir.Model, op: str) -> list[ir.Node]:
    return [node for node in model.graph if op_of(node) == op]
