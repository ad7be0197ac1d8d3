"""Name nodes and weights after the modules they come from."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping

import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
# The scope that torch.export assigns to what belongs to no module: sizes of dynamic dimensions.
_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
_TRACE_PREFIXES = ("pkg.torch", "pkg.onnxscript", "namespace")


class NameByModulePass(ir.passes.InPlacePass):
    """Name each node `module.path/OpType`, and drop torch's trace metadata, which has paths of the exporting machine.

    Args:
        prefix: name of the wrapped model inside the traced module, which is removed from every name.
        stand_ins: the original names of replaced modules, by the paths of their stand-ins.
    """

    def __init__(self, prefix: str, stand_ins: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.prefix = prefix
        self.stand_ins = stand_ins or {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename nodes and initializers; values between nodes keep torch's names."""
        scope, seen = "", Counter[str]()
        for node in model.graph:
            # Nodes that the exporter inserted have no scope, but are next to the node that they serve.
            path = self._module_path(node)
            scope = scope if path is None else path
            name = f"{scope}/{node.op_type}" if scope else node.op_type
            node.name = f"{name}_{seen[name]}" if seen[name] else name
            seen[name] += 1
            self._strip(node)
        self._strip(model, model.graph, *model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
        self._strip(*(value for node in model.graph for value in node.outputs))
        self._rename_initializers(model.graph)
        return ir.passes.PassResult(model, modified=True)

    def _module_path(self, node: ir.Node) -> str | None:
        """Return the path of the module that a node was traced from, "" for the model itself, None if unknown."""
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        # The last scope is the traced call itself.
        return self._without_prefix(scopes[-2]) if len(scopes) > 1 and scopes[-2] != _NO_MODULE else None

    def _without_prefix(self, name: str) -> str:
        for path, known in self.stand_ins.items():
            if name == path or name.startswith(f"{path}."):
                name = f"{known}{name[len(path) :]}".lstrip(".")
                break
        return "" if name == self.prefix else name.removeprefix(f"{self.prefix}.")

    def _rename_initializers(self, graph: ir.Graph) -> None:
        """Name weights as in the state dict; a weight that torch transposed is named after its module."""
        taken = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
        for value in list(graph.initializers.values()):
            name = self._without_prefix(value.name or "")
            user = next((node for node, index in value.uses() if node.op_type == "MatMul" and index == 1), None)
            if name.startswith("val_") and user is not None:
                name = f"{(user.name or '').rpartition('/')[0]}.weight_transposed".lstrip(".")
            if name not in taken and name not in graph.initializers:
                value.name = name

    @staticmethod
    def _strip(*holders: ir.Model | ir.Graph | ir.Node | ir.Value) -> None:
        for holder in holders:
            for key in _traced(holder.metadata_props):
                del holder.metadata_props[key]


def _traced(keys: Iterable[str]) -> list[str]:
    return [key for key in keys if key.startswith(_TRACE_PREFIXES)]
