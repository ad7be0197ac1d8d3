"""Keys and values of earlier tokens, in the layout (rows, heads, tokens, width)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
from torch import Tensor, fx

from pom_export.graph.stateful.run import Run, StatePart
from pom_export.graph.stateful.shapes import Symbols, shapes_of, token_axis
from pom_export.models.streaming import append_tokens


@dataclass(frozen=True)
class Cache:
    """A value of every token so far.

    Attributes:
        name: the name of the input in the file.
        node: the node that computes it for a call's tokens.
        rows: the axis of the rows, merged with heads if `merged` is above 1.
        tokens: the axis of the tokens.
        merged: how many heads are merged with the rows.
        heads: number of heads.
        width: values of a token in each head.
    """

    name: str
    node: fx.Node
    rows: int
    tokens: int
    merged: int
    heads: int
    width: int

    def part(self) -> StatePart:
        """Return the cache as a part of the state."""
        return StatePart(self.name, (self.heads, None, self.width), self.node.meta["val"].dtype)

    def appended(self, run: Run) -> Tensor:
        """Return the values of earlier tokens and of the call's, in the layout of the node."""
        new = self._split(run.values[self.node], run.rows)
        joined = append_tokens(run.past[self.name], new, run.length, run.mask)
        run.present[self.name] = joined
        return self._merge(joined)

    def _split(self, value: Tensor, rows: Any) -> Tensor:
        """Return a value as (rows, heads, tokens, width)."""
        if self.merged > 1:
            # (rows * heads, ...): the heads of a row are next to each other.
            return value.movedim((self.rows, self.tokens), (0, 1)).unflatten(0, (rows, self.merged))
        if value.dim() == 3:
            return value.movedim((self.rows, self.tokens), (0, 1))[:, None]
        return value.movedim((self.rows, self.tokens), (0, 2))

    def _merge(self, value: Tensor) -> Tensor:
        if self.merged > 1:
            return value.flatten(0, 1).movedim((0, 1), (self.rows, self.tokens))
        if self.node.meta["val"].dim() == 3:
            return value[:, 0].movedim((0, 1), (self.rows, self.tokens))
        return value.movedim((0, 2), (self.rows, self.tokens))


def make_cache(name: str, node: fx.Node, symbols: Symbols) -> Cache | None:
    """Return a cache for the values of a node; None if their axes are not understood."""
    shape = next(shapes_of(node))
    axis = token_axis(shape, symbols.tokens)
    rows = [index for index, size in enumerate(shape) if symbols.batch in size.free_symbols]
    if axis is None or axis.is_merged or len(rows) != 1:
        return None
    merged = sympy.cancel(shape[rows[0]] / symbols.batch)
    rest = [size for index, size in enumerate(shape) if index not in {axis.index, rows[0]}]
    if merged.free_symbols or any(size.free_symbols for size in rest):
        return None
    sizes = [int(size) for size in rest]
    if merged != 1:
        return Cache(name, node, rows[0], axis.index, int(merged), int(merged), sizes[0]) if len(sizes) == 1 else None
    if len(sizes) == 1:
        return Cache(name, node, rows[0], axis.index, 1, 1, sizes[0])
    return Cache(name, node, rows[0], axis.index, 1, *sizes) if len(sizes) == 2 else None
