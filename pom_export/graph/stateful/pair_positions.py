"""Compute what depends on the positions of a query and a key, such as a mask or a bias, for a call's queries.

Keys are always all tokens from the first one on, so what concerns keys alone is computed as for a sequence of that
many tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx

from pom_export.errors import InputError
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.locality import agree
from pom_export.graph.stateful.positions import SLICES, Positions, TableSlice, filled
from pom_export.graph.stateful.recipes import TRIANGLES, Recipes
from pom_export.graph.stateful.shapes import picked, shapes_of, size_at
from pom_export.graph.stateful.sides import KEY, QUERY, Counts, Side, Sides, has_role, shape_of, token_axes
from pom_export.graph.stateful.values import Values, call

_ATEN = torch.ops.aten
_EMPTY: Final = (_ATEN.empty.memory_format, _ATEN.new_empty.default, _ATEN.empty_like.default)
_EYES: Final = (_ATEN.eye.default, _ATEN.eye.m)
# Limits are looked for among this many positions.
_MOST: Final = 2**16
# How many keys, and values of a function, it is tried among, to see whether their number changes it.
_MANY: Final = 20_000
_MANY_VALUES: Final = 2**24
# Queries and keys of a mask that must be causal. Beyond the last one, float32 can't tell positions apart.
_FAR: Final = (*range(300), *(2**power + away for power in range(9, 24) for away in (-1, 0, 1)))
_FAR_KEYS: Final = 5000


class PairPositions:
    """Computes functions of the positions of queries and keys.

    Args:
        positions: computes functions of one position.
        recipes: tells how operators are run on some queries.
        values: values of the nodes on the example.
    """

    def __init__(self, positions: Positions, recipes: Recipes, values: Values) -> None:
        self.positions, self.recipes, self.values = positions, recipes, values
        self.kinds, self.symbols = positions.kinds, positions.symbols
        self._triangles: dict[tuple[fx.Node, tuple[int, int]], tuple[Any, Any] | None] = {}

    def triangle_of(self, table: fx.Node, axes: tuple[int, int]) -> tuple[Any, Any] | None:
        """Return the values of a table that is a causal mask: see `triangle`. A plan finds them, before a trace."""
        if (table, axes) not in self._triangles:
            self._triangles[table, axes] = triangle(self.values[table].movedim(axes, (-2, -1)))
        return self._triangles[table, axes]

    def evaluate(
        self, node: fx.Node, sides: Sides, queries: Tensor, keys: Any, constant: Callable[[fx.Node], Any], rows: Any = 1
    ) -> Any:
        """Return a function at the given queries and the first keys.

        Args:
            node: the node of the function.
            sides: its axes of tokens.
            queries: (M) int64, the positions of the queries, as if they were those of one row.
            keys: number of keys.
            constant: returns the value of a node that does not depend on the tokens.
            rows: number of rows; if it has queries, 1.

        Raises:
            InputError: it is no function of the two positions.
        """
        sizes = {**self.values.sizes, self.symbols.batch: rows}
        counts = Counts(sizes, self.symbols.tokens, queries.shape[0], keys)
        return _Evaluation(self, queries, counts, constant).value(node, sides)

    def at(self, node: fx.Node, sides: Sides, queries: Tensor, keys: int) -> Tensor:
        """Return a function of the example's weights."""
        with torch.no_grad():
            return self.evaluate(node, sides, queries, keys, self.values.__getitem__)

    def most(self, node: fx.Node, sides: Sides) -> int | None:
        """Return how many tokens a function is defined for, such as the rows of a table; None: no limit is known."""
        if self._works(node, sides, _MOST):
            return None
        low, high = 0, _MOST  # works, does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._works(node, sides, middle) else (low, middle)
        return low

    def _works(self, node: fx.Node, sides: Sides, tokens: int) -> bool:
        try:
            self.at(node, sides, torch.tensor([0, tokens - 1]), tokens)
        except Exception:  # noqa: BLE001 (an index beyond a table)
            return False
        return True

    def check(self, node: fx.Node, sides: Sides, most: int | None, consumer: fx.Node) -> None:
        """Check that a function is the same, however many keys follow, or that a softmax does not notice.

        Raises:
            InputError: it is not.
        """
        limit = _MANY if most is None else most
        few, more = min(limit // 2, 40), min(limit, 64)
        queries = torch.tensor([0, few // 3, few // 2, max(few - 1, 0)])
        first = self.at(node, sides, queries, few)
        many = min(limit, max(_MANY_VALUES * few // max(first.numel(), 1), more))
        shifts = [self._shift(first, self.at(node, sides, queries, count), sides, few) for count in (more, many)]
        # A shift that few keys show too is part of what calls are tried on.
        if None in shifts or (shifts[1] and not shifts[0]):
            raise InputError(
                f"with `stateful`, what is computed from positions must not depend on how many tokens follow, but "
                f"{_operator(node)} does{place_of(consumer)}",
                "Compute it from the positions of the query and the key alone",
            )

    def _shift(self, first: Tensor, other: Tensor, sides: Sides, few: int) -> bool | None:
        """Return whether two values for the same keys differ by the same number for all of them; None if by others."""
        for side in sides:
            if side.role == KEY:
                other = other.narrow(side.axis.index, 0, few)
        if agree(other, first):
            return False
        axes = [side.axis.index for side in sides if side.role == KEY]
        if not axes or not first.is_floating_point():
            return None
        away = other.double() - first.double()
        # What a mask hides may have one value wherever the rest is.
        even = away.gather(axes[0], away.abs().argmax(axes[0], keepdim=True)).expand_as(away)
        same = (away - even).abs() <= 1e-6 + 1e-5 * even.abs()
        return True if bool((same | (away == 0)).all()) else None

    def is_lower_triangle(self, mask: fx.Node) -> bool:
        """Return whether a mask, (..., tokens, tokens), lets each token see itself and all earlier ones."""
        axes = token_axes(mask, self.symbols.tokens)
        if axes is None or [axis.index for axis in axes] != [mask.meta["val"].dim() - 2, mask.meta["val"].dim() - 1]:
            return False
        sides = (Side(axes[0], QUERY), Side(axes[1], KEY))
        most = self.most(mask, sides)
        keys = _FAR_KEYS if most is None else min(most, _FAR_KEYS)
        queries = torch.tensor([place for place in _FAR if most is None or place < most])
        if most is not None and most > _FAR_KEYS:
            queries = torch.cat([queries, torch.arange(_FAR_KEYS, most)])
        found = self.at(mask, sides, queries, keys) != 0
        return bool((found == (torch.arange(keys) <= queries[:, None])).all())


class _Evaluation:
    """Values at one set of queries and keys."""

    def __init__(
        self, pairs: PairPositions, queries: Tensor, counts: Counts, constant: Callable[[fx.Node], Any]
    ) -> None:
        self._pairs, self._queries, self._counts, self._constant = pairs, queries, counts, constant
        self._known: dict[tuple[fx.Node, Sides], Any] = {}
        self._keys = torch.arange(counts.keys, device=queries.device)

    def value(self, node: fx.Node, sides: Sides) -> Any:
        """Return a node's value."""
        if self._pairs.kinds[node] is not Kind.POSITION:
            return self._constant(node)
        key = (node, sides if has_role(sides, QUERY) else ())
        if key not in self._known:
            self._known[key] = self._compute(node, sides) if has_role(sides, QUERY) else self._of_keys(node)
        return self._known[key]

    def _of_keys(self, node: fx.Node) -> Any:
        """Return a value for a sequence of as many tokens as there are keys."""
        sizes = self._counts.of(KEY)
        leaf = self._pairs.positions.leaf(node)
        if isinstance(leaf, TableSlice):
            return picked(self._constant(leaf.table), leaf.axis, self._keys + leaf.start)
        if leaf is not None:
            return filled(node, leaf, self._keys, self._pairs.symbols, sizes)

        def value_of(each: fx.Node) -> Any:
            if self._pairs.kinds[each] is Kind.SIZE:
                return size_at(each.meta["val"], sizes)
            return self.value(each, ())

        if node.op == "placeholder":
            raise _unknown(node)
        return call(node, value_of)

    def _compute(self, node: fx.Node, sides: Sides) -> Any:
        leaf = self._pairs.positions.leaf(node) if len(sides) == 1 else None
        if leaf is not None:
            return self._pairs.positions.evaluate(node, self._queries, self._constant)
        table = self._triangle_table(node, sides)
        if table is not None:
            return table
        if node.target in SLICES:
            return self._slice(node, sides)
        if node.target in _EMPTY:
            shape = shape_of(next(shapes_of(node)), sides, self._counts)
            return torch.zeros(shape, dtype=node.meta["val"].dtype, device=self._queries.device)
        if node.target in _EYES and len(sides) == 2:
            query, key = self._queries, self._keys
            matrix = query[:, None] == key if sides[0].role == QUERY else query == key[:, None]
            return matrix.to(node.meta["val"].dtype)
        recipe = self._pairs.recipes.find(node, sides)
        if recipe is None:
            raise _unknown(node)
        if node.target in TRIANGLES:
            value = self.value(node.args[0], sides)  # type: ignore[arg-type]
            return kept_part(below(node, sides, self._queries, self._keys), value)
        return recipe.run(self.value, self._counts)

    def _slice(self, node: fx.Node, sides: Sides) -> Tensor:
        """Return the first rows of a table along an axis, one for each token."""
        source, axis, start = slice_of(node)
        its = tuple(side for side in sides if side.axis.index == axis)
        if start is None or len(its) != 1 or source.meta["val"].shape[axis] == node.meta["val"].shape[axis]:
            recipe = self._pairs.recipes.find(node, sides)
            if recipe is None:
                raise _unknown(node)
            return recipe.run(self.value, self._counts)
        value = self.value(source, tuple(side for side in sides if side.axis.index != axis))
        index = self._queries if its[0].role == QUERY else self._keys
        return picked(value, axis, index + start)

    def _triangle_table(self, node: fx.Node, sides: Sides) -> Tensor | None:
        """Return part of a table that is a causal mask by comparing positions, so that the file needs no table."""
        if len(sides) != 2 or any(side.axis.is_merged for side in sides):
            return None
        table: Any = node
        sliced: list[int] = []
        while isinstance(table, fx.Node) and table.target in SLICES and self._pairs.kinds[table] is Kind.POSITION:
            table, axis, start = slice_of(table)
            if start != 0:
                return None
            sliced.append(axis)
        if sorted(sliced) != [side.axis.index for side in sides] or self._pairs.kinds[table] is not Kind.CONSTANT:
            return None
        found = self._pairs.triangle_of(table, sliced_axes(sides))
        if found is None:
            return None
        if isinstance(self._counts.keys, int):
            size = min(table.meta["val"].shape[axis] for axis in sliced)
            if self._counts.keys > size:
                raise IndexError(f"a table of {size} positions")
        shape = shape_of(next(shapes_of(node)), sides, self._counts)
        lower = triangle_at(sides, len(shape), self._queries, self._keys)
        if node.meta["val"].dtype == torch.bool:
            return (lower if found[0] else ~lower).expand(shape)
        seen, hidden = (torch.tensor(each, dtype=node.meta["val"].dtype) for each in found)
        return torch.where(lower, seen, hidden).expand(shape)


def sliced_axes(sides: Sides) -> tuple[int, int]:
    """Return the axes of queries and of keys."""
    (query,) = (side.axis.index for side in sides if side.role == QUERY)
    (key,) = (side.axis.index for side in sides if side.role == KEY)
    return query, key


def kept_part(kept: Tensor, value: Tensor) -> Tensor:
    """Return a value with zeros where it is not kept."""
    # ONNX Runtime selects between no truth values.
    return kept & value if value.dtype == torch.bool else torch.where(kept, value, torch.zeros_like(value))


def triangle(table: Tensor) -> tuple[Any, Any] | None:
    """Return the values of a causal mask where a key is seen and where it is hidden; None for another matrix."""
    lower = torch.ones(table.shape[-2:], dtype=torch.bool).tril()
    seen, hidden = table[..., lower], table[..., ~lower]
    if not hidden.numel() or bool((seen != seen.flatten()[0]).any()) or bool((hidden != hidden.flatten()[0]).any()):
        return None
    if table.dtype == torch.bool and bool(seen.flatten()[0] == hidden.flatten()[0]):
        return None
    return seen.flatten()[0].item(), hidden.flatten()[0].item()


def triangle_at(sides: Sides, rank: int, queries: Tensor, keys: Tensor, diagonal: int = 0) -> Tensor:
    """Return where a key is at most `diagonal` positions after a query, in the places of the two axes."""
    query, key = sliced_axes(sides)
    found = queries[:, None] + diagonal >= keys if query < key else queries + diagonal >= keys[:, None]
    first, second = sorted((query, key))
    shape = [1] * rank
    shape[first], shape[second] = found.shape
    return found.view(shape)


def below(node: fx.Node, sides: Sides, queries: Tensor, keys: Tensor) -> Tensor:
    """Return which elements tril or triu keep."""
    diagonal = node.args[1] if len(node.args) > 1 else node.kwargs.get("diagonal", 0)
    if not isinstance(diagonal, int):
        raise _unknown(node)
    query, key = sliced_axes(sides)
    rank = node.meta["val"].dim()
    # The row of a matrix is that of the query, or that of the key: then, row >= column - d is key >= query - d.
    lower = node.target is TRIANGLES[0]
    if query < key:
        found = triangle_at(sides, rank, queries, keys, diagonal if lower else diagonal - 1)
        return found if lower else ~found
    found = triangle_at(sides, rank, queries, keys, -diagonal - 1 if lower else -diagonal)
    return ~found if lower else found


def slice_of(node: fx.Node) -> tuple[fx.Node, int, int | None]:
    """Return what a slice is taken of, its axis, and where it starts; None for the start if that is not a number."""
    given: list[Any] = [*node.args, *[None] * (3 - len(node.args))]
    source, axis, start, *rest = given
    start = 0 if start is None else start
    plain = isinstance(start, int) and start >= 0 and rest[1:] in ([], [1])
    return source, (axis or 0) % source.meta["val"].dim(), start if plain else None


def _operator(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")


def _unknown(node: fx.Node) -> InputError:
    return InputError(
        f"with `stateful`, a mask or bias of attention must be a function of the positions of a query and a key, and "
        f"what {_operator(node)} computes is not known to be one{place_of(node)}",
        "Compute it from torch.arange by arithmetic and comparisons, or take it from a table",
    )
