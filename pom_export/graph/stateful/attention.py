"""The stateful form of self-attention: what is computed for every pair of a query and a key, and how it ends.

An operator between queries and keys is run for a call's tokens as queries and all tokens so far as keys. The keys'
values are kept; masks and biases are computed from the positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from pom_export.errors import InputError
from pom_export.graph.exported_model import PAST_KEY_VALUES
from pom_export.graph.refusals import place_of
from pom_export.graph.stateful.attention_trials import AttentionTrial
from pom_export.graph.stateful.caches import Cache, make_cache
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.pair_positions import PairPositions, below, kept_part, triangle_at
from pom_export.graph.stateful.positions import in_rows
from pom_export.graph.stateful.recipes import SDPA, TRIANGLES, Recipe, sdpa_arguments
from pom_export.graph.stateful.run import Run, StatePart, broadcast_shape, no_place
from pom_export.graph.stateful.shapes import Shape, TokenAxis, shapes_of
from pom_export.graph.stateful.sides import KEY, QUERY, Counts, Side, Sides, has_role, possible_sides, token_axes
from pom_export.graph.stateful.values import Values


@dataclass(frozen=True)
class AttentionStep:
    """An operator of attention, from a call's tokens to all tokens so far.

    Attributes:
        recipe: how it is run.
        sides: the axes of tokens of its result.
        pairs: computes masks and biases.
        caches: what is kept for each argument that has keys.
        own: those that no earlier step has named.
    """

    recipe: Recipe
    sides: Sides
    pairs: PairPositions
    caches: Mapping[fx.Node, Cache]
    own: Sequence[Cache]

    def parts(self) -> Sequence[StatePart]:
        """Return the keys and values of earlier tokens."""
        return [cache.part() for cache in self.own]

    def run(self, run: Run) -> Tensor:
        """Run it for the call's tokens."""
        node = self.recipe.node
        counts = Counts(run.sizes, run.symbols.tokens, run.tokens, run.keys)
        queries, keys = run.token_positions.reshape(-1), torch.arange(run.keys, device=run.length.device)
        if node.target in TRIANGLES:
            value = run.values[node.args[0]]  # type: ignore[index]
            kept = below(node, self.sides, queries, keys)
            axes = {side.axis.index for side in self.sides}
            shape = tuple(size if axis in axes else sympy.S.One for axis, size in enumerate(next(shapes_of(node))))
            (query,) = (side.axis for side in self.sides if side.role == QUERY)
            return kept_part(_placed(run, kept, shape, query, node), value)

        def value_of(each: fx.Node, sides: Sides) -> Any:
            if run.kinds[each] is Kind.POSITION:
                return self._of_positions(run, each, sides, queries)
            return self.caches[each].appended(run) if _are_keys(sides) else run.values[each]

        if node.target is SDPA and sdpa_arguments(node)["is_causal"]:
            rows, columns = (TokenAxis(place, sympy.S.One) for place in range(2))
            seen = triangle_at((Side(rows, QUERY), Side(columns, KEY)), 2, queries, keys)
            mask = _placed(run, seen, (run.symbols.tokens, run.symbols.tokens), rows, node)
            return self.recipe.run(value_of, counts, attn_mask=mask)
        return self.recipe.run(value_of, counts)

    def _of_positions(self, run: Run, node: fx.Node, sides: Sides, queries: Tensor) -> Any:
        query = [side.axis for side in sides if side.role == QUERY]
        value = self.pairs.evaluate(node, sides, queries, run.keys, run.constant, 1 if query else run.rows)
        return run.placed(value, node, query[0], self.recipe.node) if query else value


def _placed(run: Run, value: Tensor, shape: Shape, query: TokenAxis, consumer: fx.Node) -> Tensor:
    """Split what was computed for the queries of all rows into rows."""
    found = in_rows(value, shape, query, broadcast_shape(consumer), run.symbols, run.rows, run.tokens)
    if found is None:
        raise no_place(consumer, consumer)
    return found


@dataclass(frozen=True)
class Attention:
    """Operators between queries and keys, the last of which has a result for each query.

    Attributes:
        steps: how each is run.
        most: the largest number of tokens that its masks and biases allow; None: no limit.
    """

    steps: Mapping[fx.Node, AttentionStep]
    most: int | None

    @property
    def axis(self) -> TokenAxis:
        """The axis of the tokens in the result."""
        return list(self.steps.values())[-1].sides[0].axis

    @property
    def has_values(self) -> bool:
        """Whether it adds up values of keys, rather than being a part of a softmax written out."""
        return bool(list(self.steps.values())[-1].caches)


@dataclass
class _Found:
    """Operators between queries and keys that lead to one result."""

    recipes: dict[fx.Node, tuple[Recipe, Sides]] = field(default_factory=dict)
    unknown: fx.Node | None = None


class AttentionFinder:
    """Finds self-attention.

    Args:
        values: values of the nodes on the example.
        pairs: computes functions of the positions of queries and keys.
    """

    def __init__(self, values: Values, pairs: PairPositions) -> None:
        self._pairs, self._recipes, self._values = pairs, pairs.recipes, values
        self._kinds, self._symbols = pairs.kinds, pairs.symbols
        self._caches: dict[fx.Node, Cache] = {}
        self._sides: dict[fx.Node, Sides] = {}
        self._limits: dict[tuple[fx.Node, Sides], int | None] = {}

    def is_pair(self, node: fx.Node) -> bool:
        """Return whether a value that depends on tokens has an axis of queries and one of keys."""
        axes = token_axes(node, self._symbols.tokens) if self._kinds.get(node) is Kind.TOKENS else None
        return axes is not None and len(axes) == 2

    def find(self, node: fx.Node, index: int) -> Attention | None:
        """Return the stateful form of the attention that ends with a node; None if there is none.

        Args:
            node: a node with one axis of tokens.
            index: how many attentions there are before it.

        Raises:
            InputError: it is attention that is not causal, or has a mask or bias that is not understood.
        """
        axes = token_axes(node, self._symbols.tokens)
        if axes is None or len(axes) != 1:
            return None
        certain = node.target is SDPA or any(map(self.is_pair, node.all_input_nodes))
        found = _Found()
        for sides in possible_sides(axes):
            if not has_role(sides, QUERY):
                continue
            found = _Found(unknown=found.unknown)
            if self._resolve(node, sides, found):
                break
        else:
            if certain:
                raise _unknown(found.unknown or node)
            return None
        recipes = {each: found.recipes[each] for each in sorted(found.recipes, key=self._order)}
        if not certain and not any(has_role(s, KEY) for recipe, _ in recipes.values() for _, s in recipe.taken):
            return None
        steps = self._steps(recipes, index)
        most = self._limit(recipes)
        if not any(step.caches for step in steps.values()):
            raise _without_keys(node)
        trial = AttentionTrial(steps, self._values, self._pairs, most)
        if not trial.calls_agree():
            if not certain:
                return None
            raise _not_causal(node) if trial.sees_later() else _depends_on_number(node)
        self._sides.update({each: sides for each, (_, sides) in recipes.items()})
        return Attention(steps, most)

    def _order(self, node: fx.Node) -> int:
        return self._values.order[node]

    def _resolve(self, node: fx.Node, sides: Sides, found: _Found) -> bool:
        """Find how a node and the pairs that it is computed from are run; return whether it is known."""
        if node in found.recipes:
            return found.recipes[node][1] == sides
        recipe = self._recipes.find(node, sides)
        if recipe is None or self._sides.get(node, sides) != sides:
            found.unknown = found.unknown or node
            return False
        for each, its in recipe.taken:
            pair = self._kinds[each] is Kind.TOKENS and len(its) == 2
            if pair and not self._resolve(each, its, found):
                return False
        found.recipes[node] = (recipe, sides)
        return True

    def _steps(self, recipes: Mapping[fx.Node, tuple[Recipe, Sides]], index: int) -> dict[fx.Node, AttentionStep]:
        steps = {}
        last = list(recipes)[-1]
        names = _names(index)
        for node, (recipe, sides) in recipes.items():
            seen = [each for each, its in recipe.taken if self._kinds[each] is Kind.TOKENS and _are_keys(its)]
            own = []
            for each in dict.fromkeys(seen):
                if each not in self._caches:
                    name = f"{PAST_KEY_VALUES}.{index}.value" if node is last and each is seen[-1] else next(names)
                    cache = make_cache(name, each, self._symbols, self._kinds, self._recipes)
                    if cache is None:
                        raise _unknown_layout(each)
                    self._caches[each] = cache
                    own.append(cache)
            steps[node] = AttentionStep(recipe, sides, self._pairs, {each: self._caches[each] for each in seen}, own)
        return steps

    def _limit(self, recipes: Mapping[fx.Node, tuple[Recipe, Sides]]) -> int | None:
        """Return how many tokens masks and biases are defined for, and check that they ignore how many follow."""
        limits: list[int | None] = [None]
        for node, (recipe, _) in recipes.items():
            for each, sides in recipe.taken:
                if self._kinds[each] is not Kind.POSITION:
                    continue
                if (each, sides) not in self._limits:
                    most = self._pairs.most(each, sides)
                    self._pairs.check(each, sides, most, node)
                    self._limits[each, sides] = most
                limits.append(self._limits[each, sides])
        return min((limit for limit in limits if limit is not None), default=None)


def _names(index: int) -> Iterator[str]:
    yield f"{PAST_KEY_VALUES}.{index}.key"
    yield from (f"{PAST_KEY_VALUES}.{index}.key_{place}" for place in itertools.count(1))


def _are_keys(sides: Sides) -> bool:
    return len(sides) == 1 and has_role(sides, KEY)


def _not_causal(node: fx.Node) -> InputError:
    return InputError(
        f"with `stateful`, a token may only depend on earlier ones, but this attention is not causal{place_of(node)}",
        "Give it a causal mask",
    )


def _depends_on_number(node: fx.Node) -> InputError:
    return InputError(
        f"with `stateful`, what a token sees must not depend on how many tokens follow, but in this attention it does"
        f"{place_of(node)}",
        "Compute masks, biases and scales from the positions of the query and the key alone",
    )


def _unknown(node: fx.Node) -> InputError:
    operator = str(node.target).removesuffix(".default")
    return InputError(
        f"with `stateful`, attention must treat each query by itself, but what {operator} computes from queries and "
        f"keys is not known to{place_of(node)}",
        "Use separate axes for queries and keys, and operators that do not mix queries",
    )


def _without_keys(node: fx.Node) -> InputError:
    return InputError(
        f"with `stateful`, attention must compare queries with keys, or add up values, and this takes neither"
        f"{place_of(node)}",
        "Export without `stateful`",
    )


def _unknown_layout(node: fx.Node) -> InputError:
    shape = "x".join(map(str, node.meta["val"].shape))
    return InputError(
        f"with `stateful`, keys and values of attention must have one axis of rows and one of tokens, and these are "
        f"{shape}{place_of(node)}",
        "Move its axes",
    )
