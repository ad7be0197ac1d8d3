"""Compute what depends on positions alone at the positions of a call's tokens, which differ from row to row.

A function of the position treats each token by itself. It is computed for all tokens of all rows as if they were one
row of that many tokens, with each token's own position, and then split into rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx

from pom_export.errors import InputError
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.kinds import FILLED, Kind
from pom_export.graph.stateful.locality import axis_of, clean_axes
from pom_export.graph.stateful.shapes import (
    FIRST,
    Shape,
    Symbols,
    TokenAxis,
    picked,
    shape_at,
    shapes_of,
    size_at,
    token_axis,
)
from pom_export.graph.stateful.values import Values, call

SLICES: Final = (torch.ops.aten.slice.Tensor, torch.ops.aten.narrow.default)
"""Operators that take a part of a table."""
_ATEN = torch.ops.aten
# Operators that torch does not tag as treating each element by itself.
_UNTAGGED: Final = frozenset(
    {
        *(_ATEN.where.ScalarOther, _ATEN.where.ScalarSelf, _ATEN.where.Scalar, _ATEN.masked_fill.Tensor),
        *(_ATEN.__and__.Tensor, _ATEN.__or__.Tensor, _ATEN.__xor__.Tensor, _ATEN.rsub.Tensor, _ATEN.subtract.Tensor),
        *(_ATEN.multiply.Tensor, _ATEN.divide.Tensor, _ATEN.floor_divide.default, _ATEN.not_equal.Tensor),
        *(_ATEN.greater.Tensor, _ATEN.less.Tensor, _ATEN.greater_equal.Tensor, _ATEN.less_equal.Tensor),
    }
)
# Positions beyond this are more than any table holds.
_MOST: Final = 2**31
# How many tokens, and values of a function, it is tried among, to see whether their number changes it.
_MANY: Final = 20_000
_MANY_VALUES: Final = 2**24


@dataclass(frozen=True)
class Affine:
    """A value that is `start + step * position`."""

    start: Any
    step: Any


@dataclass(frozen=True)
class TableSlice:
    """The first rows of a table, from `start` on, along an axis: one for each token."""

    table: fx.Node
    axis: int
    start: int


Leaf = Affine | TableSlice


class Positions:
    """Computes functions of the position.

    Args:
        nodes: the traced nodes in order.
        kinds: what each value depends on.
        symbols: torch's symbols for the sizes.
        values: values of the nodes for some number of tokens.
        fewer: the same for fewer tokens.
    """

    def __init__(
        self,
        kinds: Mapping[fx.Node, Kind],
        symbols: Symbols,
        values: Values,
        fewer: Values,
    ) -> None:
        self.kinds, self.symbols = kinds, symbols
        self._values, self._fewer = values, fewer
        self._leaves: dict[fx.Node, Leaf | None] = {}

    def leaf(self, node: fx.Node) -> Leaf | None:
        """Return a node's description if it depends on positions directly."""
        if node not in self._leaves:
            self._leaves[node] = self._find_leaf(node)
        return self._leaves[node]

    def _find_leaf(self, node: fx.Node) -> Leaf | None:
        axes = clean_axes(node, self.symbols)
        if axes is None or len(axes) != 1 or axes[0].is_merged or not isinstance(self._values[node], Tensor):
            return None
        if node.target in SLICES and self.kinds[node.args[0]] is Kind.CONSTANT:  # type: ignore[index]
            start = node.args[2] if len(node.args) > 2 and node.args[2] is not None else 0
            axis = node.args[1] if len(node.args) > 1 else 0
            if isinstance(start, int) and isinstance(axis, int) and start >= 0 and axes[0].index == axis:
                return TableSlice(node.args[0], axis, start)  # type: ignore[arg-type]
            return None
        if not self._is_source(node):
            return None
        few, many = (_affine(each[node], axes[0].index) for each in (self._values, self._fewer))
        return few if few == many else None

    def _is_source(self, node: fx.Node) -> bool:
        """Return whether a node makes positions or constants, rather than computing something from them.

        A function of the position may look like a straight line at the first ones alone.
        """
        if node.target is torch.ops.aten.cumsum.default:
            counted = self.leaf(node.args[0])  # type: ignore[arg-type]
            return isinstance(counted, Affine) and not counted.step
        computed_from = [each for each in node.all_input_nodes if self.kinds.get(each) is Kind.POSITION]
        return node.op == "placeholder" or node.target in FILLED or not computed_from

    def evaluate(
        self,
        node: fx.Node,
        positions: Tensor,
        constant: Callable[[fx.Node], Any],
        sizes: Mapping[sympy.Symbol, Any] | None = None,
    ) -> Tensor:
        """Return a function of the position at the given ones, as if they were those of a single row.

        Args:
            node: the node of the function.
            positions: (M) int64.
            constant: returns the value of a node that does not depend on the tokens.
            sizes: the call's sizes by symbol, such as that of a context; None: those of the example.

        Raises:
            InputError: it is no function of the position alone.
        """
        of_call = self._values.sizes if sizes is None else sizes
        sizes = {**of_call, self.symbols.batch: 1, self.symbols.tokens: positions.shape[0]}
        known: dict[fx.Node, Any] = {}

        def value_of(each: fx.Node) -> Any:
            kind = self.kinds[each]
            if kind is Kind.SIZE:
                return size_at(each.meta["val"], sizes)
            return known[each] if kind is Kind.POSITION else constant(each)

        for each in self._needed(node):
            leaf = self.leaf(each)
            if isinstance(leaf, TableSlice):
                known[each] = picked(constant(leaf.table), leaf.axis, positions + leaf.start)
            elif isinstance(leaf, Affine):
                known[each] = filled(each, leaf, positions, self.symbols, sizes)
            elif each.op == "placeholder":
                raise InputError(
                    f"with `stateful`, {each.target} does not count positions from 0", "Give other examples"
                )
            else:
                known[each] = call(each, value_of)
        return known[node]

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        found: dict[fx.Node, None] = {}
        stack = [node]
        while stack:
            each = stack[-1]
            inputs = () if self.leaf(each) is not None else each.all_input_nodes
            waiting = [one for one in inputs if self.kinds.get(one) is Kind.POSITION and one not in found]
            if waiting:
                stack.extend(waiting)
            else:
                found.setdefault(each)
                stack.pop()
        return list(found)

    def check(self, node: fx.Node) -> None:
        """Check that a value is a function of the position: the same, however many tokens follow.

        Raises:
            InputError: it is not.
        """
        axes = clean_axes(node, self.symbols)
        expected = self._values[node]
        # Fewer than there are, so that what depends on their number differs.
        index = torch.arange(self._values.tokens).flip(0)[: self._values.tokens // 2]
        try:
            found = self.evaluate(node, index, self._values.__getitem__)
            wanted = _one_row(expected, next(shapes_of(node)), self.symbols).index_select(axes[0].index, index)  # type: ignore[index]
            same = _agree(found, wanted) and self._ignores_number(node, found, index)
        except InputError:
            raise
        except Exception:  # noqa: BLE001 (whatever the operators raise at other sizes)
            same = False
        if not same:
            raise InputError(
                f"with `stateful`, what is computed from positions must not depend on how many tokens follow, "
                f"but {_operator(node)} does{place_of(node)}",
                "Compute it from the position alone",
            )

    def _ignores_number(self, node: fx.Node, found: Tensor, index: Tensor) -> bool:
        """Return whether a function gives the same among many more tokens, at all positions that it has."""
        count = min(_MANY, _MANY_VALUES // max(found.numel() // max(len(index), 1), 1))
        others = torch.arange(max(count, len(index))) % (self.most(node) or _MOST)
        many = torch.cat([index, others])
        among = self.evaluate(node, many, self._values.__getitem__)
        return _agree(among.narrow(axis_of(node, self.symbols), 0, len(index)), found)

    def at(self, node: fx.Node, positions: Tensor) -> Tensor:
        """Return a value of the example's weights at other positions, in ascending order."""
        with torch.no_grad():
            return self.evaluate(node, positions, self._values.__getitem__)

    def among(self, tokens: int) -> Values:
        """Return the values of the nodes for a number of tokens."""
        return self._values.at(tokens)

    def most(self, node: fx.Node) -> int | None:
        """Return how many positions a function has, such as the rows of a table; None: no limit below 2^31."""
        if self._works(node, _MOST - 1):
            return None
        low, high = 0, _MOST - 1  # works, does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._works(node, middle) else (low, middle)
        return low + 1

    def _works(self, node: fx.Node, position: int) -> bool:
        try:
            with torch.no_grad():
                self.evaluate(node, torch.tensor([position]), self._values.__getitem__)
        except Exception:  # noqa: BLE001 (an index beyond a table)
            return False
        return True


def _agree(found: Tensor, wanted: Tensor) -> bool:
    wide = torch.complex128 if found.is_complex() else torch.float64
    return found.shape == wanted.shape and torch.allclose(
        found.to(wide), wanted.to(wide), rtol=1e-5, atol=1e-6, equal_nan=True
    )


def _operator(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def _affine(value: Tensor, axis: int) -> Affine | None:
    """Return a value as `start + step * position` if it is that along an axis, and the same along all others."""
    columns = value.movedim(axis, 0).reshape(value.shape[axis], -1)
    if not columns.numel() or bool((columns != columns[:, :1]).any()):
        return None
    column = columns[:, 0]
    if value.dtype == torch.bool:
        return Affine(bool(column[0]), None) if bool((column == column[0]).all()) else None
    steps = column.diff()
    if bool((steps != steps[0]).any()):
        return None
    return Affine(column[0].item(), steps[0].item())


def filled(
    node: fx.Node, leaf: Affine, positions: Tensor, symbols: Symbols, sizes: Mapping[sympy.Symbol, Any]
) -> Tensor:
    """Return `start + step * position` in a node's shape.

    Args:
        node: the node.
        leaf: what it is.
        positions: (M) int64.
        symbols: torch's symbols for the sizes.
        sizes: the symbols' values, M for the number of tokens.
    """
    shape = next(shapes_of(node))
    dtype = node.meta["val"].dtype
    axis = token_axis(shape, symbols.tokens)
    assert axis is not None
    full = shape_at(shape, sizes)
    if not leaf.step:
        return torch.full(full, leaf.start, dtype=dtype)
    values = positions.to(dtype)
    values = values if leaf.step == 1 else values * leaf.step
    values = values + leaf.start if leaf.start else values
    return values.view([-1 if index == axis.index else 1 for index in range(len(shape))]).expand(full)


def _one_row(value: Tensor, shape: Shape, symbols: Symbols) -> Tensor:
    """Return only the first row of a value that has an axis of rows."""
    for index, size in enumerate(shape):
        if size == symbols.batch:
            return value.narrow(index, 0, 1)
    return value


def in_rows(
    value: Tensor,
    shape: Shape,
    axis: TokenAxis | None,
    consumer: Shape | None,
    symbols: Symbols,
    rows: Any,
    tokens: Any,
) -> Tensor | None:
    """Split a function of the position into rows, in the shape that an operator with other operands takes.

    Args:
        value: the function at every token of every row, as if they were one row.
        shape: the traced shape of the function.
        axis: its axis of the tokens; None: it has none.
        consumer: the shape of what an operator makes of it and other operands by broadcasting; None if it does not
            broadcast.
        symbols: torch's symbols for the sizes.
        rows: number of rows.
        tokens: number of tokens in each.

    Returns:
        The value; None if there is no place for rows.
    """
    if axis is None:
        return None if any(symbols.tokens in size.free_symbols for size in shape) else value
    if axis.is_merged and axis.order != FIRST:
        return None
    at, own = _rows_axis(shape, symbols)
    token, repeats = axis.index, sympy.Integer(1)
    if at is None:
        if consumer is None or own != 1:
            return None
        missing = len(consumer) - len(shape)
        value = value.reshape([1] * missing + list(value.shape))
        shape = (sympy.Integer(1),) * missing + shape
        token += missing
        at, repeats = _rows_axis(consumer, symbols)
        if at is None or shape[at] != 1:
            return None
    # The axis of a single row, which other axes may be merged with, follows that of the rows.
    each = tokens * int(axis.others) if axis.is_merged else tokens
    split = value.unflatten(token, (rows, each)).movedim(token, at).flatten(at, at + 1)
    return split if repeats == 1 else split.repeat_interleave(int(repeats), at)


def _rows_axis(shape: Shape, symbols: Symbols) -> tuple[int | None, sympy.Expr]:
    """Return the axis of the rows, and how many values it has for each."""
    for index, size in enumerate(shape):
        if symbols.batch in size.free_symbols:
            times = sympy.cancel(size / symbols.batch)
            return (None, times) if times.free_symbols else (index, times)
    return None, sympy.Integer(1)


def is_pointwise(node: fx.Node) -> bool:
    """Return whether an operator broadcasts its operands and treats each element by itself."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ()) or node.target in _UNTAGGED
