"""Find out how an operator is run on some queries and all keys, by running it on a selection of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pom_export.graph.stateful.einsums import run_operator
from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.locality import agree, computes_with_count
from pom_export.graph.stateful.shapes import Symbols, depends_on, size_at
from pom_export.graph.stateful.sides import ROLES, Counts, Sides, possible_sides, select, token_axes
from pom_export.graph.stateful.values import Values, random_like

_ATEN = torch.ops.aten
TRIANGLES: Final = (_ATEN.tril.default, _ATEN.triu.default)
"""Operators that compare the place of a query with that of a key."""
SDPA: Final = _ATEN.scaled_dot_product_attention.default
_SDPA_NAMES: Final = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
# An operator with more arguments that may be either is not tried.
_MOST_TRIALS: Final = 512


def sdpa_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of torch's attention by name."""
    return sdpa_named(node.args, node.kwargs)


def sdpa_named(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of torch's attention by name, with those that are left out."""
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return {**defaults, **dict(zip(_SDPA_NAMES, args, strict=False)), **kwargs}


def written_out(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,  # noqa: ARG001 (nothing is dropped in evaluation)
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """Return torch's attention, in operators that torch.onnx translates for an empty sequence too."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return scores.softmax(-1) @ value


@dataclass(frozen=True)
class Recipe:
    """How an operator is run where the numbers of queries and of keys differ.

    torch's attention is run without a mask of its own.

    Attributes:
        node: the operator.
        kinds: what each value depends on.
        symbols: torch's symbols for the sizes.
        operands: the sides of each argument that has axes of tokens, in order.
        sizes: the role of each size among the arguments that depends on the number of tokens, in order.
    """

    node: fx.Node
    kinds: Mapping[fx.Node, Kind]
    symbols: Symbols
    operands: tuple[Sides, ...]
    sizes: tuple[str, ...]

    @property
    def taken(self) -> list[tuple[fx.Node, Sides]]:
        """The arguments that have axes of tokens, each with its sides."""
        nodes = [each for each in _arguments(self.node) if _is_operand(each, self.kinds, self.symbols)]
        return list(zip(nodes, self.operands, strict=True))

    def run(self, value_of: Callable[[fx.Node, Sides], Any], counts: Counts, **replaced: Any) -> Any:
        """Run the operator.

        Args:
            value_of: returns the value of an argument with the given sides.
            counts: the sizes.
            **replaced: arguments of torch's attention to replace.
        """
        operands, sizes = iter(self.operands), iter(self.sizes)

        def value(each: fx.Node) -> Any:
            if self.kinds[each] is Kind.SIZE:
                role = next(sizes) if _is_size(each, self.kinds, self.symbols) else ROLES[0]
                return size_at(each.meta["val"], counts.of(role))
            return value_of(each, next(operands) if _is_operand(each, self.kinds, self.symbols) else ())

        args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), value)
        if self.node.target is SDPA:
            args, kwargs = (), {**sdpa_named(args, kwargs), "dropout_p": 0.0, "is_causal": False, **replaced}
        return run_operator(self.node, self.symbols.batch, args, kwargs)


def _arguments(node: fx.Node) -> list[fx.Node]:
    """Return the nodes among a node's arguments, in order, each as often as it occurs."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _is_size(node: fx.Node, kinds: Mapping[fx.Node, Kind], symbols: Symbols) -> bool:
    return kinds.get(node) is Kind.SIZE and depends_on(node.meta["val"], symbols.tokens)


def _is_operand(node: fx.Node, kinds: Mapping[fx.Node, Kind], symbols: Symbols) -> bool:
    return kinds.get(node) in {Kind.TOKENS, Kind.POSITION} and depends_on(node.meta["val"], symbols.tokens)


def _orders(of: Iterable[Sides]) -> set[str]:
    """Return where tokens are in axes that merge them with others."""
    return {side.axis.order for sides in of for side in sides if side.axis.is_merged}


class _Trial(NamedTuple):
    """Arguments for all tokens, and an operator's result."""

    given: dict[fx.Node, Any]
    result: Any


class Recipes:
    """Finds recipes.

    An operator is run on random values of all tokens, and on some queries, in another order: the second result must be
    that selection of the first one. What depends on positions alone must stay the same when later keys are left out;
    what depends on the keys' values is tried with all of them, since an operator such as a softmax may mix keys.

    Args:
        symbols: torch's symbols for the sizes.
        kinds: what each value depends on.
        values: values of the nodes on the example.
    """

    def __init__(self, symbols: Symbols, kinds: Mapping[fx.Node, Kind], values: Values) -> None:
        self._symbols, self._kinds, self._values = symbols, kinds, values
        self._generator = torch.Generator().manual_seed(3)
        self._found: dict[tuple[fx.Node, Sides], Recipe | None] = {}

    def find(self, node: fx.Node, sides: Sides) -> Recipe | None:
        """Return how an operator's result with the given sides is computed; None if that is not known."""
        if (node, sides) not in self._found:
            self._found[node, sides] = self._search(node, sides)
        return self._found[node, sides]

    def _search(self, node: fx.Node, sides: Sides) -> Recipe | None:
        if any(each not in self._kinds for each in node.all_input_nodes):
            return None
        if self._kinds[node] is Kind.TOKENS and computes_with_count(node, self._kinds, self._symbols):
            return None
        if node.target in TRIANGLES:
            last = len(node.meta["val"].shape) - 2
            whole = len(sides) == len(ROLES) and [side.axis.index for side in sides] == [last, last + 1]
            whole = whole and not any(side.axis.is_merged for side in sides)
            return Recipe(node, self._kinds, self._symbols, (sides,), ()) if whole else None
        recipes = list(itertools.islice(self._possible(node), _MOST_TRIALS + 1))
        if not 0 < len(recipes) <= _MOST_TRIALS:
            return None
        trials = [self._trial(node, few=few) for few in (False, True)]
        if trials[0] is None:
            return None
        # An operand that is the same everywhere does not show its order: take that of the result.
        orders = _orders([sides])
        recipes.sort(key=lambda recipe: len(_orders(recipe.operands) - orders))
        for recipe in recipes:
            exact, few = (self._agrees(recipe, sides, trial) for trial in trials)
            if exact and few is not False:
                return recipe
        return None

    def _possible(self, node: fx.Node) -> Iterator[Recipe]:
        arguments = _arguments(node)
        choices = []
        for each in arguments:
            if _is_operand(each, self._kinds, self._symbols):
                axes = token_axes(each, self._symbols.tokens)
                if axes is None:
                    return
                choices.append(list(possible_sides(axes)))
        count = len([each for each in arguments if _is_size(each, self._kinds, self._symbols)])
        for sizes in itertools.product(ROLES, repeat=count):
            for operands in itertools.product(*choices):
                yield Recipe(node, self._kinds, self._symbols, operands, sizes)

    def _trial(self, node: fx.Node, *, few: bool) -> _Trial | None:
        """Return random arguments for all tokens, and the operator's result; None if it fails on them."""
        given = {}
        for each in _arguments(node):
            if _is_operand(each, self._kinds, self._symbols):
                value = self._values[each]
                is_random = self._kinds[each] is Kind.TOKENS
                given[each] = random_like(value, self._generator, few=few) if is_random else value
        tokens = self._values.tokens
        counts = Counts(self._values.sizes, self._symbols.tokens, tokens, tokens)
        # With as many queries as keys, any of the possible ones is the operator itself.
        result = self._run(next(self._possible(node)), lambda each, _: given.get(each, self._values[each]), counts)
        return None if result is None else _Trial(given, result)

    def _agrees(self, recipe: Recipe, sides: Sides, trial: _Trial | None) -> bool | None:
        """Return whether a selection of the arguments gives that of the result; None if the operator fails."""
        if trial is None:
            return None
        fewer = self._values.tokens - 1
        keys = fewer if self._kinds[recipe.node] is Kind.POSITION else None
        queries = torch.randperm(fewer, generator=self._generator)[: fewer // 2 + 1]
        counts = Counts(self._values.sizes, self._symbols.tokens, len(queries), keys or self._values.tokens)

        def some(each: fx.Node, its: Sides) -> Any:
            if each not in trial.given:
                return self._values[each]
            return select(trial.given[each], its, self._values.sizes, queries, keys)

        actual = self._run(recipe, some, counts)
        if actual is None:
            return None
        expected = tree_leaves(select(trial.result, sides, self._values.sizes, queries, keys))
        found = tree_leaves(actual)
        return len(found) == len(expected) and all(map(agree, found, expected))

    @staticmethod
    def _run(recipe: Recipe, value_of: Callable[[fx.Node, Sides], Any], counts: Counts) -> Any:
        try:
            with torch.no_grad():
                return recipe.run(value_of, counts)
        except Exception:  # noqa: BLE001 (whatever an operator raises for other sizes or values)
            return None
