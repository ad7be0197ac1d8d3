"""Join steps to runs: sets of steps that one node can replace."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import onnx_ir as ir

from pom_export.runtime.fusing.shapes import Shapes, values_used
from pom_export.runtime.fusing.steps import Elementwise, Product, Step, merged

_BEFORE_ALL = -1


def runs_of(graph: ir.Graph, steps: Sequence[Step], shapes: Shapes) -> list[list[Step]]:
    """Return the runs that have a product of quantized weights, each in an order in which it can be computed.

    No path leads from a step of a run through anything outside of it and back, so that a node can take its place.

    Args:
        graph: the graph.
        steps: its steps.
        shapes: the shapes of their values.
    """
    together: dict[tuple[int, object], list[Step]] = defaultdict(list)
    for step, level in _levels(graph, steps, shapes).items():
        shape = shapes.of(step.y)
        assert shape is not None
        together[level, shape[:2]].append(step)
    runs = [_with_products(found) for found in together.values()]
    return [_folded(run) for run in runs if run]


def _levels(graph: ir.Graph, steps: Sequence[Step], shapes: Shapes) -> dict[Step, int]:
    """Return how many times a path to each step leaves steps and enters them again, at most.

    Along a path, this never becomes smaller, and it grows where something that is no step, or one of other sizes, comes
    between two steps. So there is no way out of the steps of a level and back.
    """
    by_last = {step.nodes[-1]: step for step in steps}
    inside = {node for step in steps for node in step.nodes[:-1]}
    makers = {step.y: step for step in steps}
    levels: dict[Step, int] = {}
    reached: dict[ir.Value, int] = {}

    def level_of(value: ir.Value | None) -> int:
        return _BEFORE_ALL if value is None else reached.get(value, _BEFORE_ALL)

    for node in graph:
        step = by_last.get(node)
        if step is not None:
            level = 0
            for value in step.reads:
                same = value in makers and _sizes(value, shapes) == _sizes(step.y, shapes)
                level = max(level, level_of(value) + (not same))
            level = max([level, *(level_of(value) + 1 for value in step.outside)])
            levels[step] = level
            reached.update((value, level) for value in step.makes)
        elif node not in inside:
            level = max(map(level_of, values_used(node)), default=_BEFORE_ALL)
            reached.update((value, level) for value in node.outputs)
    return levels


def _sizes(value: ir.Value, shapes: Shapes) -> tuple[object, ...]:
    shape = shapes.of(value)
    assert shape is not None
    return shape[:2]


def _with_products(steps: Sequence[Step]) -> list[Step]:
    """Return the steps that are connected with a product of quantized weights."""
    group: dict[Step, list[Step]] = {}
    makers = {step.y: step for step in steps}
    for step in steps:
        group[step] = [step]
        for value in step.reads:
            maker = makers.get(value)
            if maker is not None and group[maker] is not group[step]:
                joined = group[maker] + group[step]
                group.update(dict.fromkeys(joined, joined))
    return [step for step in steps if any(isinstance(each, Product) for each in group[step])]


def _folded(run: Sequence[Step]) -> list[Step]:
    """Return a run with activations, factors and sums joined to the steps that make what they are applied to."""
    order: dict[ir.Value, Step] = {}
    for step in run:
        whole = step
        if isinstance(step, Elementwise):
            # The later of two, which is where the other's result is there.
            known = list(order)
            sides = sorted((value for value in set(step.reads) if value in order), key=known.index, reverse=True)
            for value in sides:
                joined = merged(order[value], step) if _is_read_once(value, step) else None
                if joined is not None:
                    del order[value]
                    whole = joined
                    break
        order[whole.y] = whole
    return list(order.values())


def _is_read_once(value: ir.Value, step: Step) -> bool:
    """Return whether a step reads a value as one of its operands, and nothing else uses it."""
    users = {user for user, _ in value.uses()}
    return users <= set(step.nodes) and not value.is_graph_output() and list(step.reads).count(value) == 1
