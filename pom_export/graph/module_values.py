"""Find the values through which each module of a model is connected with the rest of its graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy.typing as npt
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.nodes import input_named, op_of

_FLOATS: Final = (None, *(kind for kind in ir.DataType if kind.is_floating_point()))
# What the exporter calls a node that no submodule contains: its operator, and a number if there are several.
_NUMBER: Final = re.compile(r"_\d+$")

_QUANTIZE: Final = ("DynamicQuantizeLinear", "QuantizeLinear")
_LAYERS_BIAS: Final = re.compile(r"\.bias(_|$)")


@dataclass(frozen=True)
class CallValues:
    """The part of a graph that one call of a module became.

    Attributes:
        nodes: its nodes, in order.
        own: those of them that are in no module inside it.
        entering: names of the floating-point values that it reads from elsewhere, in order; no weights.
        leaving: names of the floating-point values that it makes and that are used elsewhere, in order.
        biases: the bias that a gated aggregation adds to some of those, which may belong to the module.
    """

    nodes: Sequence[ir.Node]
    own: Sequence[ir.Node]
    entering: Sequence[str]
    leaving: Sequence[str]
    biases: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


class ModuleValues:
    """The modules of a graph, by the names that its nodes have from an export: `module.path/Operator`.

    Args:
        model: the graph.
        modules: names of the model's modules, "" for the model itself; None: those that occur in the nodes' names.
    """

    def __init__(self, model: ir.Model, modules: Collection[str] | None = None) -> None:
        self.nodes = list(model.graph)
        self._position = {node: index for index, node in enumerate(self.nodes)}
        operators = {node.op_type for node in self.nodes}
        self.modules = frozenset({"", *modules}) if modules is not None else _named_modules(self.nodes, operators)
        self.scopes: dict[ir.Node, str] = {}
        for node in self.nodes:
            self.scopes[node] = self._scope(node, operators)
        for node in self.nodes:
            if node.op_type in _QUANTIZE:
                self.scopes[node] = self._of_users(node)

    def calls(self, module: str, count: int = 1) -> list[CallValues]:
        """Return the parts that a module's calls became; empty if the graph has none, or they can't be told apart.

        Args:
            module: its name.
            count: how many times it is called.
        """
        prefix = f"{module}." if module else ""
        own = [node for node, scope in self.scopes.items() if scope == module or scope.startswith(prefix)]
        if not own or count < 1:
            return []
        if count == 1 or not module:
            return [self._call(module, own)]
        size, rest = divmod(len(own), count)
        parts = [own[start : start + size] for start in range(0, len(own) - rest, size)] if size else []
        kinds = {tuple((self.scopes[node], node.op_type) for node in part) for part in parts}
        return [self._call(module, part) for part in parts] if not rest and len(kinds) == 1 else []

    @property
    def names(self) -> frozenset[str]:
        """The names of the nodes."""
        return frozenset(node.name for node in self.nodes if node.name)

    def position(self, node: ir.Node) -> int:
        """Return a node's place in the graph."""
        return self._position[node]

    def _of_users(self, node: ir.Node) -> str:
        """Return the module whose input a node quantizes, if it is one module; else the node's own."""
        users = {self.scopes[user] for value in node.outputs for user, _ in value.uses() if user in self.scopes}
        users.discard(self.scopes[node])
        return users.pop() if len(users) == 1 else self.scopes[node]

    def _known(self, path: str) -> str:
        """Return the innermost known module on a path; "" if there is none. A stand-in has parts that it replaces."""
        while path and path not in self.modules:
            path = path.rpartition(".")[0]
        return path

    def _call(self, module: str, nodes: Sequence[ir.Node]) -> CallValues:
        inside = set(nodes)
        entering = {
            value.name: None
            for node in nodes
            for value in node.inputs
            if value is not None and value.producer() not in inside and _is_computed(value)
        }
        leaving = {
            value.name: value
            for node in nodes
            for value in node.outputs
            if value.dtype in _FLOATS
            and (value.is_graph_output() or any(user not in inside for user, _ in value.uses()))
        }
        biases = {name: bias for name, value in leaving.items() if name and (bias := _gate_bias(value)) is not None}
        own = [node for node in nodes if self.scopes[node] == module]
        return CallValues(nodes, own, [name for name in entering if name], [name for name in leaving if name], biases)

    def _scope(self, node: ir.Node, operators: Collection[str]) -> str:
        """Return the module that a node belongs to. One that another tool added belongs to the node before it."""
        path, slash, _ = (node.name or "").partition("/")
        if slash and (known := self._known(path)):
            return known
        if _NUMBER.sub("", path) in operators or path.endswith("weight_transposed"):
            return ""
        before = (value.producer() for value in node.inputs if value is not None)
        return next((self.scopes[one] for one in before if one in self.scopes), "")


def _named_modules(nodes: Iterable[ir.Node], operators: Collection[str]) -> frozenset[str]:
    """Return the modules in nodes' names, and those that contain them."""
    found = {""}
    for node in nodes:
        path, slash, _ = (node.name or "").partition("/")
        if slash and path and _NUMBER.sub("", path) not in operators and not path.endswith("weight_transposed"):
            steps = path.split(".")
            found.update(".".join(steps[:count]) for count in range(1, len(steps) + 1))
    return frozenset(found)


def _is_computed(value: ir.Value) -> bool:
    return value.dtype in _FLOATS and not value.is_initializer() and value.const_value is None


def _gate_bias(value: ir.Value) -> npt.NDArray[Any] | None:
    """Return a linear layer's bias that the gated op adds to its output; None if the value is no such output.

    The bias of a mixer's own, se_bias, belongs to no layer.
    """
    for user, index in value.uses():
        if op_of(user) == contract.GATED_OP_NAME and contract.GATED_INPUTS[index] == "gate":
            bias = input_named(user, "gate_bias")
            is_layers = bias is not None and _LAYERS_BIAS.search(bias.name or "")
            if is_layers and bias is not None and bias.const_value is not None:
                return bias.const_value.numpy()
    return None
