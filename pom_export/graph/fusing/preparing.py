"""Write parts of a graph as the op needs them, and put back those that nothing came of."""

from __future__ import annotations

from typing import Protocol

import onnx_ir as ir

from pom_export.graph.fusing.dividing import EarlyDivisions
from pom_export.graph.fusing.evaluation import Evaluator
from pom_export.graph.fusing.joining import JoinedFactors
from pom_export.graph.fusing.splitting import SplitOperators


class _Change(Protocol):
    def put_back(self) -> None:
        """Undo what is not needed."""


class Prepared:
    """A graph that computes the same in operators of which the op takes the place.

    Args:
        graph: the graph; it is changed.
        root: the model's graph, if that is another one, in whose nodes this one is.
    """

    def __init__(self, graph: ir.Graph, root: ir.Graph | None = None) -> None:
        evaluator = Evaluator(graph, root)
        self._changes: list[_Change] = [SplitOperators(graph), EarlyDivisions(evaluator)]
        evaluator.forget()
        self._changes.append(JoinedFactors(evaluator))

    def put_back(self) -> None:
        """Undo what is not needed, once unused nodes are removed."""
        for change in reversed(self._changes):
            change.put_back()
