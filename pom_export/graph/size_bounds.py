"""Find the sizes that a traced graph is valid for: from torch's symbols, and from the ends of constant tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from pom_export.graph.claims import Bounds

_aten = torch.ops.aten
# Operators that keep the values of indices.
_VIEWS = {
    _aten.alias.default,
    _aten.clone.default,
    _aten.detach.default,
    _aten.expand.default,
    _aten.lift_fresh_copy.default,
    _aten.permute.default,
    _aten.reshape.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.to.dtype,
    _aten.unsqueeze.default,
    _aten.view.default,
    _aten._to_copy.default,
    _aten._unsafe_view.default,
}
# Positions of the table and the indices among each operator's arguments.
_LOOK_UPS = {_aten.embedding.default: (0, 1), _aten.index_select.default: (0, 2), _aten.index.Tensor: (0, 1)}
_SLICE_START = 2
# The argument of each operator that is the end.
_RANGES = {_aten.arange.default: 0, _aten.arange.start: 1, _aten.arange.start_step: 1}


def traced_bounds(
    program: ExportedProgram, axes: Sequence[Sequence[int | str]], numbers: Mapping[str, Bounds]
) -> dict[str, Bounds]:
    """Return the smallest and largest size of each dynamic dimension of a traced program's inputs.

    Beyond them, the graph computes something other than the model: a branch on a size was taken the other way, or a
    table is too short. Dimensions without bounds are left out.

    Args:
        program: the program as torch traced it.
        axes: for each input, in order: sizes, and the file's names of dynamic dimensions.
        numbers: the sizes, by dimension, from which the model computes the same Python numbers as for the example.
    """
    tables = dict(_table_ends(program))
    found: dict[str, Bounds] = {}
    for fake, named in zip(user_inputs(program), axes, strict=True):
        for size, name in zip(fake.shape, named, strict=True):
            expression = _expression(size)
            if expression is not None and isinstance(name, str) and name not in found:
                low, high = symbol_bounds(expression, program.range_constraints, tables)
                least, most = numbers.get(name, (0, None))
                low, high = max(low, least), min((end for end in (high, most) if end is not None), default=None)
                if low > 0 or high is not None:
                    found[name] = low, high
    return found


def user_inputs(program: ExportedProgram) -> list[Tensor]:
    """Return the fake tensors that torch traced a program with, one for each user input."""
    wanted = set(map(str, program.graph_signature.user_inputs))
    return [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]


def symbol_bounds(
    expression: sympy.Expr, ranges: Mapping[Any, Any], tables: Mapping[sympy.Symbol, int] | None = None
) -> Bounds:
    """Return the bounds of a size, which is a symbol or an increasing function of one.

    Args:
        expression: the size.
        ranges: a program's `range_constraints`.
        tables: the largest value of each symbol before a table ends.
    """
    if expression.is_Symbol:
        known = ranges.get(expression)
        low, high = (0, None) if known is None else (_finite(known.lower) or 0, _finite(known.upper))
        ends = [end for end in (high, (tables or {}).get(expression)) if end is not None]
        return max(low, 0), min(ends, default=None)
    if len(expression.free_symbols) != 1:
        return 0, None
    (symbol,) = expression.free_symbols
    high = symbol_bounds(symbol, ranges, tables)[1]
    return 0, None if high is None else int(expression.subs(symbol, high))


def _finite(bound: Any) -> int | None:
    return int(bound) if getattr(bound, "is_Integer", isinstance(bound, int)) else None


def _table_ends(program: ExportedProgram) -> Iterator[tuple[sympy.Symbol, int]]:
    """Yield the largest value of each symbol before a slice or a look-up exceeds a table of fixed length."""
    smallest: dict[sympy.Symbol, int] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        for needed, rows in _needs(node):
            if (bound := _solved(needed, rows)) is not None:
                symbol, most = bound
                smallest[symbol] = min(most, smallest.get(symbol, most))
    yield from smallest.items()


def _needs(node: Node) -> Iterator[tuple[sympy.Expr, int]]:
    """Yield how many rows of a table a node needs, and how many the table has."""
    if node.target is _aten.slice.Tensor and len(node.args) > _SLICE_START:
        table, axis, start = node.args[: _SLICE_START + 1]
        rows = _shape(table)[axis] if isinstance(axis, int) else None
        end = _expression(node.args[_SLICE_START + 1]) if len(node.args) > _SLICE_START + 1 else None
        from_end = _expression(start)
        if end is None and from_end is not None:  # the last rows, counted from the end
            end = -from_end
    elif (found := look_up(node)) is not None:
        rows, end = found.rows, found.end_of_range()
    else:
        return
    if end is not None and isinstance(rows, int):
        yield end, rows


def _shape(node: Any) -> Sequence[Any]:
    return node.meta["val"].shape if isinstance(node, Node) else ()


@dataclass(frozen=True)
class LookUp:
    """Rows of a table that are picked by numbers.

    Attributes:
        rows: how many rows the table has; a symbol if that depends on a size.
        source: where the numbers come from, before reshaping.
        added: what is added to them.
    """

    rows: Any
    source: Any
    added: int

    def end_of_range(self) -> sympy.Expr | None:
        """Return one more than the largest number if they are an arange; None if they are not."""
        if not isinstance(self.source, Node) or self.source.target not in _RANGES:
            return None
        end = _expression(self.source.args[_RANGES[self.source.target]])
        return None if end is None else end + self.added


def look_up(node: Node) -> LookUp | None:
    """Return what a node picks from a table; None for other operators."""
    if node.target not in _LOOK_UPS:
        return None
    where, by = _LOOK_UPS[node.target]
    axis = node.args[1] if node.target is _aten.index_select.default else 0
    rows = _shape(node.args[where])[axis] if isinstance(axis, int) else None
    given = node.args[by]
    source, added = given[0] if isinstance(given, (list, tuple)) else given, 0
    while isinstance(source, Node) and (source.target in _VIEWS or _adds_number(source)):
        added += int(source.args[1]) if _adds_number(source) else 0  # type: ignore[arg-type]
        source = source.args[0]
    return LookUp(rows, source, added)


def _adds_number(node: Node) -> bool:
    return node.target is _aten.add.Tensor and type(node.args[1]) is int


def _expression(value: Any) -> sympy.Expr | None:
    """Return the expression of a size in the graph; None for a number."""
    value = value.meta.get("val") if isinstance(value, Node) else value
    return value.node.expr if isinstance(value, torch.SymInt) else None


def _solved(needed: sympy.Expr, rows: int) -> tuple[sympy.Symbol, int] | None:
    """Return the symbol that `needed` depends on, and its largest value that needs no more than `rows`."""
    if len(needed.free_symbols) != 1:
        return None
    (symbol,) = needed.free_symbols
    slope = sympy.diff(needed, symbol)
    if not (slope.is_Integer and slope > 0):
        return None
    return symbol, int((rows - needed.subs(symbol, 0)) // slope)
