"""Try attention on random values: calls must give what one pass gives, and no token may see later ones."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import sympy
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pom_export.graph.stateful.caches import Cache
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.pair_positions import PairPositions
from pom_export.graph.stateful.recipes import Recipe
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.graph.stateful.shapes import TokenAxis, selected, shape_at, shapes_of
from pom_export.graph.stateful.sides import KEY, Counts, Side
from pom_export.graph.stateful.values import Values, arguments, random_like

# How many tokens, and where they are split into two calls.
_TOKENS: Final = 64
_SPLIT: Final = 40
_TOLERANCE: Final = 1e-5


class _Step(Protocol):
    recipe: Recipe
    caches: Mapping[fx.Node, Cache]

    def run(self, run: Run) -> Any:
        """Run the operator for a call's tokens."""


class AttentionTrial:
    """Operators between queries and keys on random values.

    Args:
        steps: how each is run, in order.
        values: values of the nodes on the example.
        pairs: computes functions of the positions of queries and keys.
        most: the largest number of tokens that masks and biases allow; None: no limit.
    """

    def __init__(self, steps: Mapping[fx.Node, Any], values: Values, pairs: PairPositions, most: int | None) -> None:
        self._steps: Mapping[fx.Node, _Step] = steps
        self._values, self._pairs = values, pairs
        self._symbols, self._kinds = pairs.symbols, pairs.kinds
        self._tokens = min(_TOKENS, most or _TOKENS)
        self._last = list(steps)[-1]
        self._generator = torch.Generator().manual_seed(2)
        self._sides = dict(self._taken())
        self._given = {node: self._random(node) for node in self._sides}
        self._given |= self._repeated()

    def _taken(self) -> Iterator[tuple[fx.Node, Side]]:
        """Yield what the operators take of tokens, and what is kept for that, with the axis of the tokens."""
        for step in self._steps.values():
            for node, sides in step.recipe.taken:
                if node not in self._steps and self._kinds[node] is Kind.TOKENS:
                    yield node, sides[0]
            for cache in step.caches.values():
                yield cache.node, Side(TokenAxis(cache.tokens, sympy.S.One), KEY)

    def _random(self, node: fx.Node) -> Any:
        sizes = {**self._values.sizes, self._symbols.tokens: self._tokens}
        shapes, dtype = list(shapes_of(node)), node.meta["val"].dtype
        like = torch.zeros(shape_at(shapes[0], sizes), dtype=dtype)
        return random_like(like, self._generator, few=not dtype.is_floating_point)

    def _repeated(self) -> dict[fx.Node, Tensor]:
        """Return the values that are computed from what is kept."""
        counts = Counts(self._values.sizes, self._symbols.tokens, self._tokens, self._tokens)
        found = {}
        for step in self._steps.values():
            for node, cache in step.caches.items():
                if cache.repeats:
                    found[node] = cache.repeated(self._given[cache.node], counts)
        return found

    def calls_agree(self) -> bool:
        """Return whether two calls give what one pass gives."""
        split = self._tokens * _SPLIT // _TOKENS
        caches = [cache.part() for step in self._steps.values() for cache in step.caches.values()]
        past = {part.name: self._empty(part) for part in caches}
        found = []
        with torch.no_grad():
            for start, stop in ((0, split), (split, self._tokens)):
                run = self._call(past, start, stop)
                for node, step in self._steps.items():
                    run.values[node] = step.run(run)
                past = run.present
                found.append(tree_leaves(run.values[self._last]))
        joined = [torch.cat(parts, self._axis) for parts in zip(*found, strict=True)]
        return self._agree(joined, self._one_pass(self._given))

    @property
    def _axis(self) -> int:
        """The axis of the tokens in the result."""
        shape = next(shapes_of(self._last))
        (axis,) = (place for place, size in enumerate(shape) if self._symbols.tokens in size.free_symbols)
        return axis

    def _empty(self, part: StatePart) -> Tensor:
        return torch.zeros([self._values.rows, *(0 if size is None else size for size in part.shape)], dtype=part.dtype)

    def _call(self, past: Mapping[str, Tensor], start: int, stop: int) -> Run:
        sizes = {**self._values.sizes, self._symbols.tokens: stop - start}
        length = torch.full((self._values.rows,), start)
        run = Run(self._kinds, self._symbols, self._pairs.positions, sizes, length, None, past)
        run.values = _Known(self._values)
        for node, side in self._sides.items():
            others = int(shape_at((side.axis.others,), self._values.sizes)[0]) if side.axis.is_merged else 1
            run.values[node] = selected(self._given[node], side.axis, others, torch.arange(start, stop))
        return run

    def _one_pass(self, given: Mapping[fx.Node, Tensor]) -> list[Tensor]:
        """Return what the last of the operators returns for all tokens at once."""
        values = self._values.at(self._tokens)
        known: dict[fx.Node, Any] = dict(given)
        with torch.no_grad():
            for node in self._steps:
                args, kwargs = arguments(node, lambda each: known[each] if each in known else values[each])
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return tree_leaves(known[self._last])

    def sees_later(self) -> bool:
        """Return whether a token's result changes with later tokens."""
        half = self._tokens // 2
        changed = {node: self._with_others(node, value, half) for node, value in self._given.items()}
        first, second = (
            [value.narrow(self._axis, 0, half) for value in self._one_pass(each)] for each in (self._given, changed)
        )
        return not self._agree(first, second)

    def _with_others(self, node: fx.Node, value: Tensor, start: int) -> Tensor:
        side = self._sides[node].axis
        if side.is_merged:
            return value
        other = value.clone()
        part = other.narrow(side.index, start, self._tokens - start)
        part.copy_(random_like(part, self._generator, few=not part.is_floating_point()))
        return other

    def _agree(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
        """Return whether those of several results agree that are used."""
        used = {
            user.args[1]
            for user in self._last.users
            if user.target is operator.getitem and user in self._kinds and user.users
        }
        pairs = zip(found, expected, strict=True)
        return all(_same(*pair) for place, pair in enumerate(pairs) if len(found) == 1 or place in used)


class _Known(dict[fx.Node, Any]):
    """Values by node: those that are set, and constants of the example."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self._values = values

    def __missing__(self, node: fx.Node) -> Any:
        return self._values[node]


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    finite = second[second.isfinite()]
    if not finite.numel():
        return False
    bound = _TOLERANCE * float(finite.abs().max())
    return torch.allclose(first, second, rtol=_TOLERANCE, atol=bound, equal_nan=True)
