"""How large a model's values are on given inputs, name by name."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Interpreter, Node
from torch.utils._pytree import tree_leaves


def observe_peaks(
    program: ExportedProgram, feeds: Iterable[Mapping[str, Tensor]], outputs: Sequence[str]
) -> dict[str, float]:
    """Run a traced program and return the largest finite magnitude of every floating-point value.

    Args:
        program: what the ONNX graph was made from: its values' names are the graph's.
        feeds: inputs by name, in float32.
        outputs: names that the graph gives the program's outputs.
    """
    observer = _Observer(program, outputs)
    with torch.no_grad():
        for feed in feeds:
            observer.run(*feed.values())
    return observer.peaks


class _Observer(Interpreter):
    """Runs a program node by node and keeps each value's peak."""

    def __init__(self, program: ExportedProgram, outputs: Sequence[str]) -> None:
        super().__init__(program.module(check_guards=False))
        returned = next(node for node in self.graph.nodes if node.op == "output")
        tensors = [leaf for leaf in tree_leaves(returned.args) if isinstance(leaf, Node)]
        self.peaks: dict[str, float] = {}
        self._outputs = dict(zip(tensors, outputs, strict=False))

    def run_node(self, n: Node) -> Any:
        """Compute a node and note its peak, under the names that the ONNX graph has for it."""
        result = super().run_node(n)
        if isinstance(result, Tensor) and result.is_floating_point() and result.numel():
            peak = float(result.detach().abs().nan_to_num(posinf=0.0).max())
            for name in {n.name, self._outputs.get(n, n.name), _part_name(n)}:
                self.peaks[name] = max(peak, self.peaks.get(name, 0.0))
        return result


def _part_name(node: Node) -> str:
    """Return the ONNX graph's name of a part of a split tensor, or the node's own."""
    if node.target is not operator.getitem or not isinstance(node.args[0], Node):
        return node.name
    return f"{node.args[0].name}_split_{node.args[1]}"
