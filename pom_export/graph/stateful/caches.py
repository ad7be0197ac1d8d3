"""Keys, values and other values of earlier tokens, in the layout (rows, heads, tokens, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import sympy
import torch
from torch import Tensor, fx

from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.recipes import Recipe, Recipes
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.graph.stateful.shapes import Symbols, shape_at, shapes_of, token_axis
from pom_export.graph.stateful.sides import KEY, Counts, Side, Sides
from pom_export.models.streaming import append_tokens

_ATEN = torch.ops.aten
# What repeats heads, and what moves axes around it: done again for all tokens rather than kept.
_REPEATING: Final = frozenset(
    {
        *(_ATEN.expand.default, _ATEN.repeat.default, _ATEN.repeat_interleave.self_int, _ATEN.clone.default),
        *(_ATEN.view.default, _ATEN.reshape.default, _ATEN._unsafe_view.default, _ATEN.unsqueeze.default),
        *(_ATEN.permute.default, _ATEN.transpose.int, _ATEN.squeeze.dim, _ATEN.alias.default),
    }
)
_MOST_REPEATING: Final = 8


@dataclass(frozen=True)
class Cache:
    """A value of every token so far.

    Attributes:
        name: the name of the input in the file.
        node: the node that computes it for a call's tokens.
        rows: the axis of the rows, merged with heads if `merged` is above 1.
        tokens: the axis of the tokens.
        merged: how many heads are merged with the rows.
        rest: the sizes of the other axes, in order, after the merged heads.
        repeats: operators that make of it what attention takes, in order.
    """

    name: str
    node: fx.Node
    rows: int
    tokens: int
    merged: int
    rest: tuple[int, ...]
    repeats: Sequence[Recipe] = ()

    def part(self) -> StatePart:
        """Return the cache as a part of the state."""
        sizes = [*([self.merged] if self.merged > 1 else []), *self.rest]
        width = sizes.pop() if sizes else 1
        return StatePart(self.name, (math.prod(sizes), None, width), self.node.meta["val"].dtype)

    def appended(self, run: Run) -> Tensor:
        """Return the values of earlier tokens and of the call's, in the layout that attention takes."""
        if self.name not in run.joined:
            new = self._split(run.values[self.node], run.rows)
            kept = append_tokens(run.past[self.name], new, run.length, run.mask)
            run.present[self.name] = kept
            counts = Counts(run.sizes, run.symbols.tokens, run.tokens, run.keys)
            run.joined[self.name] = self.repeated(self._merge(kept), counts)
        return run.joined[self.name]

    def repeated(self, value: Tensor, counts: Counts) -> Tensor:
        """Return what attention takes, given the values of the node for all tokens."""
        for recipe in self.repeats:
            value = recipe.run(partial(_first, value), counts)
        return value

    def _split(self, value: Tensor, rows: Any) -> Tensor:
        """Return a value as (rows, heads, tokens, width)."""
        if self.merged == 1 and len(self.rest) == 2:
            return value.movedim((self.rows, self.tokens), (0, 2))
        first = value.movedim((self.rows, self.tokens), (0, 1))
        if self.merged > 1 and len(self.rest) == 1:
            # (rows * heads, ...): the heads of a row are next to each other.
            return first.unflatten(0, (rows, self.merged))
        heads, _, width = self.part().shape
        split = first.unflatten(0, (rows, self.merged)).movedim(2, 1).flatten(2)
        return split.unflatten(2, (heads, width)).movedim(1, 2)

    def _merge(self, value: Tensor) -> Tensor:
        """Return (rows, heads, tokens, width) in the layout of the node."""
        if self.merged == 1 and len(self.rest) == 2:
            return value.movedim((0, 2), (self.rows, self.tokens))
        if self.merged > 1 and len(self.rest) == 1:
            return value.flatten(0, 1).movedim((0, 1), (self.rows, self.tokens))
        split = value.movedim(2, 1).flatten(2).unflatten(2, (self.merged, *self.rest))
        return split.movedim(2, 1).flatten(0, 1).movedim((0, 1), (self.rows, self.tokens))


def _first(value: Tensor, *_: Any) -> Tensor:
    return value


def make_cache(name: str, node: fx.Node, symbols: Symbols, kinds: Any, recipes: Recipes) -> Cache | None:
    """Return a cache for the values of a node; None if their axes are not understood."""
    repeats: list[Recipe] = []
    root, best = node, (node, 0)
    while len(repeats) < _MOST_REPEATING and root.target in _REPEATING and isinstance(root.args[0], fx.Node):
        recipe = recipes.find(root, _keys(root, symbols)) if _has_plain_axis(root, symbols) else None
        if recipe is None or kinds[root.args[0]] is not Kind.TOKENS or not _has_plain_axis(root.args[0], symbols):
            break
        repeats.insert(0, recipe)
        root = root.args[0]
        if _size(root, symbols) < _size(best[0], symbols):
            best = (root, len(repeats))
    chosen = _of(name, best[0], symbols, repeats[len(repeats) - best[1] :])
    return chosen or _of(name, node, symbols, ())


def _keys(node: fx.Node, symbols: Symbols) -> Sides:
    axis = token_axis(next(shapes_of(node)), symbols.tokens)
    assert axis is not None
    return (Side(axis, KEY),)


def _has_plain_axis(node: fx.Node, symbols: Symbols) -> bool:
    axis = token_axis(next(shapes_of(node)), symbols.tokens)
    return axis is not None and not axis.is_merged


def _size(node: fx.Node, symbols: Symbols) -> int:
    """Return how many values a node has for one token of one row."""
    return math.prod(shape_at(next(shapes_of(node)), {symbols.batch: 1, symbols.tokens: 1}))


def _of(name: str, node: fx.Node, symbols: Symbols, repeats: Sequence[Recipe]) -> Cache | None:
    shape = next(shapes_of(node))
    axis = token_axis(shape, symbols.tokens)
    rows = [index for index, size in enumerate(shape) if symbols.batch in size.free_symbols]
    if axis is None or axis.is_merged or len(rows) != 1:
        return None
    merged = sympy.cancel(shape[rows[0]] / symbols.batch)
    rest = [size for index, size in enumerate(shape) if index not in {axis.index, rows[0]}]
    if merged.free_symbols or any(size.free_symbols for size in rest):
        return None
    return Cache(name, node, rows[0], axis.index, int(merged), tuple(map(int, rest)), tuple(repeats))
