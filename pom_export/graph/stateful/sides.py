"""The two sides of attention: which axis of a value holds the tokens that ask, and which the tokens that are seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from pom_export.graph.stateful.shapes import ORDERS, Shape, TokenAxis, selected, shape_at, shapes_of, token_axis_at

QUERY: Final = "query"
KEY: Final = "key"
ROLES: Final = (QUERY, KEY)


@dataclass(frozen=True)
class Side:
    """An axis of tokens, and whether they are a call's own or all so far."""

    axis: TokenAxis
    role: str


Sides = tuple[Side, ...]


@dataclass(frozen=True)
class Counts:
    """The sizes of a computation whose numbers of queries and of keys differ.

    Attributes:
        sizes: the values of all symbols but that of the tokens.
        tokens: that symbol.
        queries: number of queries.
        keys: number of keys.
    """

    sizes: Mapping[sympy.Symbol, Any]
    tokens: sympy.Symbol
    queries: Any
    keys: Any

    def of(self, role: str) -> dict[sympy.Symbol, Any]:
        """Return the values of the symbols where the tokens have a role."""
        return {**self.sizes, self.tokens: self.queries if role == QUERY else self.keys}


def token_axes(node: fx.Node, tokens: sympy.Symbol) -> tuple[TokenAxis, ...] | None:
    """Return the axes of tokens of a value, the same in each tensor; None if they differ.

    An axis of keys may hold more than tokens, such as a column that every query may attend to.
    """
    found = {_axes_in(shape, tokens) for shape in shapes_of(node)}
    return found.pop() if len(found) == 1 else None


def _axes_in(shape: Shape, tokens: sympy.Symbol) -> tuple[TokenAxis, ...] | None:
    return tuple(
        token_axis_at(shape, index, tokens) or TokenAxis(index, sympy.S.NaN)
        for index, size in enumerate(shape)
        if tokens in size.free_symbols
    )


def _is_whole(axis: TokenAxis) -> bool:
    """Return whether an axis holds all tokens and nothing else, for each of some others."""
    return axis.others is not sympy.S.NaN


def possible_sides(axes: Sequence[TokenAxis]) -> Iterator[Sides]:
    """Yield what the axes of tokens of a value may be; of two, one is that of queries, and holds nothing else."""
    if len(axes) > len(ROLES):
        return
    for roles in itertools.permutations(ROLES, len(axes)):
        if any(role == QUERY and not _is_whole(axis) for axis, role in zip(axes, roles, strict=True)):
            continue
        for orders in itertools.product(*(ORDERS if axis.is_merged else ORDERS[:1] for axis in axes)):
            yield tuple(
                Side(replace(axis, order=order), role) for axis, order, role in zip(axes, orders, roles, strict=True)
            )


def has_role(sides: Sides, role: str) -> bool:
    """Return whether an axis has a role."""
    return any(side.role == role for side in sides)


def select(value: Any, sides: Sides, sizes: Mapping[sympy.Symbol, int], queries: Tensor, keys: int | None) -> Any:
    """Return a value for some of the queries and the first keys.

    Args:
        value: the value for all tokens, a tensor or several.
        sides: its axes.
        sizes: the symbols' values.
        queries: the queries to keep, in order.
        keys: how many keys to keep; None: all.
    """
    for side in sides:
        if side.role == QUERY:
            index = queries
        elif keys is None:
            continue
        else:
            index = torch.arange(keys)
        others = int(shape_at((side.axis.others,), sizes)[0])
        value = tree_map_only(Tensor, partial(selected, axis=side.axis, others=others, index=index), value)
    return value


def shape_of(shape: Shape, sides: Sides, counts: Counts) -> list[Any]:
    """Return a shape where the numbers of queries and of keys differ."""
    roles = {side.axis.index: side.role for side in sides}
    return [shape_at((size,), counts.of(roles.get(index, KEY)))[0] for index, size in enumerate(shape)]
