"""Rewrite what a model computes from consecutive positions where the result is known exactly.

Hugging Face's masks index tables by every row and every position, look for gaps between positions, and count tokens.
Such operators seem to mix tokens. Here, an index by all positions in order becomes a change of shape, differences of
consecutive positions become a number, and running sums of ones become positions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx

from pom_export.graph.stateful.shapes import Shape, shapes_of

_ATEN: Final = torch.ops.aten
_FILLED: Final[Mapping[Any, Any]] = {
    _ATEN.ones_like.default: 1,
    _ATEN.new_ones.default: 1,
    _ATEN.ones.default: 1,
    _ATEN.zeros_like.default: 0,
    _ATEN.new_zeros.default: 0,
    _ATEN.zeros.default: 0,
}
# Tensors of one value, and which argument it is.
_FULL: Final = {_ATEN.full.default: 1, _ATEN.full_like.default: 1, _ATEN.new_full.default: 2}
_COMPARED: Final[Mapping[Any, Callable[[Any, Any], bool]]] = {
    _ATEN.eq.Scalar: operator.eq,
    _ATEN.ne.Scalar: operator.ne,
    _ATEN.lt.Scalar: operator.lt,
    _ATEN.le.Scalar: operator.le,
    _ATEN.gt.Scalar: operator.gt,
    _ATEN.ge.Scalar: operator.ge,
}
_SAME: Final = (_ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default, _ATEN._to_copy.default)
_WHOLE: Final = (torch.int32, torch.int64, torch.bool)


@dataclass(frozen=True)
class Line:
    """A tensor of whole numbers that is `start + step * index` along an axis, and the same along all others.

    Attributes:
        start: the first value.
        step: from one to the next; 0 if it is the same everywhere.
        axis: the axis, from 0.
    """

    start: int
    step: int = 0
    axis: int = 0


def simplify(graph: fx.Graph, positions: Collection[str], fills: Mapping[str, Any]) -> None:
    """Rewrite indices by all positions, differences of positions and running sums of a number in a traced graph.

    Args:
        graph: the graph.
        positions: its inputs that count along their last axis, from 0.
        fills: its inputs that hold one value, and that value.
    """
    lines: dict[fx.Node, Line] = {}
    for node in list(graph.nodes):
        if node.op == "placeholder" and node.target in positions:
            lines[node] = Line(0, 1, node.meta["val"].dim() - 1)
        elif node.op == "placeholder" and fills.get(node.target) in {0, 1}:
            lines[node] = Line(int(fills[node.target]))
        if node.op != "call_function":
            continue
        line = _line(node, lines)
        if line is not None:
            lines[node] = line
        if node.target is _ATEN.index.Tensor:
            _reshape(graph, node, lines)
        elif line is not None and node.target in {_ATEN.diff.default, _ATEN.cumsum.default}:
            with graph.inserting_before(node):
                made = _made(graph, node, line)
            node.replace_all_uses_with(made)
            lines[made] = line
            graph.erase_node(node)


def _made(graph: fx.Graph, node: fx.Node, line: Line) -> fx.Node:
    """Insert a line in the shape of an operator's first argument, made of its positions."""
    dtype = node.meta["val"].dtype
    value = _call(graph, node, _ATEN.full_like.default, node.args[0], line.start, dtype=dtype)
    if not line.step:
        return value
    count = _call(graph, node, _ATEN.sym_size.int, node.args[0], line.axis)
    index = _call(graph, node, _ATEN.arange.default, count, dtype=dtype, device=node.meta["val"].device)
    if line.step != 1:
        index = _call(graph, node, _ATEN.mul.Tensor, index, line.step)
    for _ in range(node.meta["val"].dim() - 1 - line.axis):
        index = _call(graph, node, _ATEN.unsqueeze.default, index, -1)
    return _call(graph, node, _ATEN.add.Tensor, value, index)


def _line(node: fx.Node, lines: Mapping[fx.Node, Line]) -> Line | None:
    """Return the line that an operator's result is; None if that is not known."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return None
    if node.target in _FILLED:
        return Line(_FILLED[node.target])
    if node.target in _FULL and isinstance(number := node.args[_FULL[node.target]], (bool, int)):
        return Line(int(number))
    if value.dtype not in _WHOLE and node.target not in _SAME:
        return None
    if node.target is _ATEN.arange.default:
        return Line(0, 1)
    if node.target in {_ATEN.arange.start, _ATEN.arange.start_step}:
        step = node.args[2] if len(node.args) > 2 else 1
        return Line(node.args[0], step) if isinstance(node.args[0], int) and isinstance(step, int) else None
    given = lines.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if given is None:
        return None
    shape = next(shapes_of(node.args[0]))  # type: ignore[arg-type]
    return _moved(node, given, shape) or _computed(node, given, shape, lines)


def _moved(node: fx.Node, line: Line, shape: Shape) -> Line | None:
    """Return what a change of shape makes of a line."""
    rank = len(shape)
    if node.target in _SAME:
        return line
    if node.target is _ATEN.expand.default:
        return replace(line, axis=line.axis + len(next(shapes_of(node))) - rank)
    if node.target is _ATEN.unsqueeze.default:
        place = _axis(node.args[1], rank + 1)
        return replace(line, axis=line.axis + (place <= line.axis))
    if node.target is _ATEN.slice.Tensor:
        axis = _axis(node.args[1] if len(node.args) > 1 else 0, rank)
        start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
        by = node.args[4] if len(node.args) > 4 else 1
        if not line.step or axis != line.axis:
            return line
        if not (isinstance(start, int) and start >= 0 and by == 1):
            return None
        first = line.start + line.step * start
        return Line(first) if next(shapes_of(node))[axis] == 1 else replace(line, start=first)
    return None


def _computed(node: fx.Node, line: Line, shape: Shape, lines: Mapping[fx.Node, Line]) -> Line | None:
    """Return what arithmetic makes of a line."""
    arguments = node.args
    if node.target in _COMPARED and not line.step and isinstance(arguments[1], int):
        return Line(int(_COMPARED[node.target](line.start, arguments[1])))
    if node.target in {_ATEN.add.Tensor, _ATEN.sub.Tensor} and isinstance(arguments[1], int):
        by = arguments[1] * (1 if node.target is _ATEN.add.Tensor else -1)
        return None if node.kwargs else replace(line, start=line.start + by)
    if node.target is _ATEN.cumsum.default and not line.step:
        return Line(line.start, line.start, _axis(arguments[1], len(shape)))
    if node.target is _ATEN.diff.default and arguments[1:2] in {(), (1,)} and len(arguments) == 4:
        axis = _axis(arguments[2], len(shape))
        before = lines.get(arguments[3])  # type: ignore[arg-type]
        if before is None or before.step or next(shapes_of(arguments[3]))[axis] != 1:  # type: ignore[arg-type]
            return None
        step = line.step if axis == line.axis else 0
        return Line(step) if line.start - before.start == step else None
    return None


def _reshape(graph: fx.Graph, node: fx.Node, lines: Mapping[fx.Node, Line]) -> None:
    """Replace an index by all places of a tensor's first axes, each in order along an axis of its own."""
    table, indices = node.args
    assert isinstance(table, fx.Node)
    assert isinstance(indices, Sequence)
    axes = _axes_of(table, indices, lines)
    if axes is None:
        return
    rank = len(next(shapes_of(node)))
    size = rank - (len(next(shapes_of(table))) - len(axes))  # of the indices, broadcast
    order = sorted(range(len(axes)), key=axes.__getitem__)
    rest = range(len(axes), len(next(shapes_of(table))))
    with graph.inserting_before(node):
        value = _call(graph, node, _ATEN.permute.default, table, [*order, *rest])
        for axis in sorted(set(range(size)) - set(axes)):
            value = _call(graph, node, _ATEN.unsqueeze.default, value, axis)
    node.replace_all_uses_with(value)
    graph.erase_node(node)


def _axes_of(table: fx.Node, indices: Sequence[Any], lines: Mapping[fx.Node, Line]) -> list[int] | None:
    """Return the axis of their broadcast shape along which each index counts all places; None if one doesn't."""
    sizes = next(shapes_of(table))
    if any(not isinstance(index, fx.Node) or index not in lines for index in indices):
        return None
    rank = max(len(next(shapes_of(index))) for index in indices)
    axes = []
    for index, size in zip(indices, sizes, strict=False):
        shape, line = next(shapes_of(index)), lines[index]
        ones = all(each == 1 for axis, each in enumerate(shape) if axis != line.axis)
        if line.start or line.step != 1 or not ones or sympy.simplify(shape[line.axis] - size) != 0:
            return None
        axes.append(line.axis + rank - len(shape))
    return axes if len(set(axes)) == len(axes) else None


def _call(graph: fx.Graph, like: fx.Node, target: Any, *arguments: Any, **options: Any) -> fx.Node:
    """Insert a call where another one is, in the same place of the user's code."""
    node = graph.call_function(target, arguments, options)
    node.meta = dict(like.meta)
    with like.meta["val"].fake_mode:  # else a tensor of a symbolic size would be a real one
        values = (each.meta["val"] if isinstance(each, fx.Node) else each for each in arguments)
        node.meta["val"] = target(*values, **options)
    return node


def _axis(axis: Any, rank: int) -> int:
    return int(axis) % rank
