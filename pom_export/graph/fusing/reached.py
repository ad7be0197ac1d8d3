"""The values that are computed from features and, at most, from the weights of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Evaluator
from pom_export.graph.fusing.sources import PAIRS, Source, sources_of
from pom_export.graph.fusing.tokens import Layout, nodes_after

# The most nodes from the features to their mean.
LONGEST: Final = 60
# Inputs of nodes that are sizes or axes: their numbers don't tell where tokens end.
_AXES: Final = {
    "Expand": 1, "Reshape": 1, "ReduceMax": 1, "ReduceMean": 1, "ReduceMin": 1, "ReduceSum": 1, "Split": 1,
    "Squeeze": 1, "Tile": 1, "Unsqueeze": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """A value computed from features.

    Attributes:
        value: the value.
        data: what else it depends on that is neither a constant nor a size.
        fixed: what enters without depending on data, other than sizes and axes.
    """

    value: ir.Value
    data: tuple[ir.Value, ...]
    fixed: tuple[ir.Value, ...]


def values_of_tokens(evaluator: Evaluator, features: ir.Value, layout: Layout) -> Iterator[Reached]:
    """Yield the values computed from features and, at most, the weights of tokens, in order."""
    known = {features: Reached(features, (), ())}
    for node in nodes_after(evaluator, features, LONGEST):
        inner = [known[each] for each in node.inputs if each is not None and each in known]
        outer = [each for each in node.inputs if each is not None and each not in known]
        data = [each for each in outer if evaluator.depends_on_data(each)]
        if not inner or any(not sources_of(evaluator, each, layout) for each in data):
            continue
        axes = _AXES.get(node.op_type)
        fixed = [
            each
            for index, each in enumerate(node.inputs)
            if each in outer and each not in data and index != axes and each is not None
        ]
        for output in node.outputs:
            known[output] = Reached(
                output,
                tuple(dict.fromkeys([*(each for one in inner for each in one.data), *data])),
                tuple(dict.fromkeys([*(each for one in inner for each in one.fixed), *fixed])),
            )
            yield known[output]


def shared_sources(evaluator: Evaluator, layout: Layout, reached: Reached) -> list[Source | None]:
    """Return where all of the data beside the features may come from, the nearest first."""
    if not reached.data:
        return [None]
    first, *others = (sources_of(evaluator, each, layout) for each in reached.data)
    shared = [each for each in first if all(each.value in {one.value for one in other} for other in others)]
    shared.sort(key=lambda each: (each.kind == PAIRS, each.changes, not each.is_bool, not each.counts))
    return [*shared, *(replace(each, inverted=True) for each in shared if each.is_bool)]
