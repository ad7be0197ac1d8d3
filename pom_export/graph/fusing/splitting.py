"""Split operators that ONNX Runtime's optimizer made of several, and put back those that nothing came of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import onnx_ir as ir

_DOMAIN: Final = "com.microsoft"
_SUM_AND_GELU: Final = "BiasGelu"
_CONVOLUTION: Final = "FusedConv"
_ACTIVATION: Final = ("activation", "activation_params")
# The inputs of a convolution that nothing is added to.
_CONVOLUTION_INPUTS: Final = 3
# The activations of features, with the names of their parameters.
_ACTIVATIONS: Final = {"LeakyRelu": ("alpha",), "Relu": ()}


@dataclass(frozen=True)
class _Parts:
    whole: ir.Node
    first: ir.Node
    activation: ir.Node


class SplitOperators:
    """The two operators in each BiasGelu of a graph, and in each FusedConv, as nodes of their own.

    The op computes the activation itself, of what is before it.

    Args:
        graph: the graph; its nodes are split.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._parts = [parts for node in list(graph) if (parts := _parts(node)) is not None]
        for parts in self._parts:
            before, output = parts.first.outputs[0], parts.whole.outputs[0]
            before.shape, before.type, before.name = output.shape, output.type, f"{output.name}/before"
            self._replace(parts.whole, [parts.first, parts.activation])

    def put_back(self) -> None:
        """Join the parts whose activation is still in use."""
        for parts in self._parts:
            made = parts.activation.outputs[0]
            if parts.activation.graph is self._graph and (made.is_graph_output() or list(made.uses())):
                self._join(parts)

    def _join(self, parts: _Parts) -> None:
        old = parts.whole
        whole = ir.Node(old.domain, old.op_type, list(parts.first.inputs), old.attributes.values(), name=old.name)
        self._replace(parts.activation, [whole])
        if not list(parts.first.outputs[0].uses()):
            self._graph.remove(parts.first, safe=True)

    def _replace(self, node: ir.Node, new: list[ir.Node]) -> None:
        old, made = node.outputs[0], new[-1].outputs[0]
        self._graph.insert_before(node, new)
        made.shape, made.type, name = old.shape, old.type, old.name
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)
        old.name, made.name = None, name


def _parts(node: ir.Node) -> _Parts | None:
    """Return the operators in a node, which are in no graph yet; None if it is one only."""
    if node.domain != _DOMAIN:
        return None
    if node.op_type == _SUM_AND_GELU:
        add = ir.node("Add", list(node.inputs), name=f"{node.name}/Add")
        return _Parts(node, add, ir.node("Gelu", [add.outputs[0]], domain=_DOMAIN, name=node.name))
    kind = node.attributes.get("activation")
    if node.op_type != _CONVOLUTION or kind is None or kind.as_string() not in _ACTIVATIONS:
        return None
    if len(node.inputs) > _CONVOLUTION_INPUTS:
        return None
    own = [each for name, each in node.attributes.items() if name not in _ACTIVATION]
    convolution = ir.Node("", "Conv", list(node.inputs), own, name=f"{node.name}/Conv")
    given = node.attributes.get("activation_params")
    numbers = [] if given is None else list(given.as_floats())
    parameters = dict(zip(_ACTIVATIONS[kind.as_string()], numbers, strict=False))
    return _Parts(node, convolution, ir.node(kind.as_string(), [convolution.outputs[0]], parameters, name=node.name))
