"""Find out whether an operator treats every token by itself, by running it on a selection of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pom_export.graph.stateful.kinds import Kind
from pom_export.graph.stateful.shapes import (
    ORDERS,
    Symbols,
    TokenAxis,
    depends_on,
    selected,
    shape_at,
    shapes_of,
    size_at,
    token_axis,
)
from pom_export.graph.stateful.values import Values, call, random_like

# The share of large values by which results may differ, since some are float32.
_TOLERANCE: Final = 1e-5
# Types of operators' parameters that are numbers to compute with.
_NUMBERS: Final = ("Tensor", "number", "Scalar", "float", "Optional[number]", "Optional[float]")
# A mask leaves at least this share of a product of random numbers, of which the largest are as many times as large.
_LOWER_PART: Final = 0.25
_SPREAD: Final = 16.0
Axes = Sequence[TokenAxis]


def clean_axes(node: fx.Node, symbols: Symbols) -> Axes | None:
    """Return the axis of the tokens in each tensor that a node returns; None unless each has one of all tokens."""
    found = [token_axis(shape, symbols.tokens) for shape in shapes_of(node)]
    return [axis for axis in found if axis is not None] if found and all(found) else None


def axis_of(node: fx.Node, symbols: Symbols) -> int:
    """Return the axis of the tokens of a value that is one tensor with all of them."""
    axes = clean_axes(node, symbols)
    assert axes is not None
    return axes[0].index


class Locality:
    """Tells whether an operator's result for a token depends on that token alone.

    The operator is run on random values of all tokens, and on some of them, drawn with repetition and in another order:
    the second result must be that selection of the first one. This holds for every operator, without a list of those
    that are known.

    Args:
        symbols: torch's symbols for the sizes.
        kinds: what each value depends on.
        values: values of the nodes on the example.
    """

    def __init__(self, symbols: Symbols, kinds: Mapping[fx.Node, Kind], values: Values) -> None:
        self._symbols, self._kinds, self._values = symbols, kinds, values
        self._generator = torch.Generator().manual_seed(0)
        count = values.tokens
        chosen = torch.randint(count, (max(count - 2, 1),), generator=self._generator)
        self._index = chosen
        self._fewer = {**values.sizes, symbols.tokens: len(chosen)}

    def axes(self, node: fx.Node, known: Mapping[fx.Node, Axes]) -> Axes | None:
        """Return the axes of the tokens in a node's result if each token's result depends on it alone, else None.

        Args:
            node: the node.
            known: the axes of the values that are known to have tokens.
        """
        found = clean_axes(node, self._symbols)
        if found is None:
            return None
        taken = {}
        for each in node.all_input_nodes:
            kind = self._kinds.get(each)
            if kind is Kind.TOKENS or (kind is Kind.POSITION and clean_axes(each, self._symbols)):
                axes = known.get(each) or clean_axes(each, self._symbols)
                if axes is None or (kind is Kind.TOKENS and each not in known):
                    return None
                taken[each] = axes
            elif kind is Kind.POSITION and any(
                self._symbols.tokens in s.free_symbols for x in shapes_of(each) for s in x
            ):
                return None
        for order in ORDERS if any(axis.is_merged for axis in found) else ORDERS[:1]:
            ordered = [dataclasses.replace(axis, order=order) for axis in found]
            if self._is_local(node, taken, ordered):
                return ordered
        return None

    def _is_local(self, node: fx.Node, taken: Mapping[fx.Node, Axes], axes: Axes) -> bool:
        if computes_with_count(node, self._kinds, self._symbols):
            return False
        # Small integers may be beyond what an operator picks from.
        return bool(self._try(node, taken, axes, few=False)) and self._try(node, taken, axes, few=True) is not False

    def _try(self, node: fx.Node, taken: Mapping[fx.Node, Axes], axes: Axes, *, few: bool) -> bool | None:
        """Return whether a selection of tokens gives that selection of the result; None if the operator fails."""
        whole, some = {}, {}
        for each, its in taken.items():
            value = self._values[each]
            tokens = self._kinds[each] is Kind.TOKENS
            whole[each] = random_like(value, self._generator, few=few) if tokens else value
            some[each] = self._select(whole[each], its)
        try:
            first = self._run(node, whole, self._values.sizes)
            second = self._run(node, some, self._fewer)
        except Exception:  # noqa: BLE001 (whatever an operator raises for other sizes or values)
            return None
        expected = tree_leaves(self._select(first, axes))
        actual = tree_leaves(second)
        return len(actual) == len(expected) and all(map(agree, actual, expected))

    def _run(self, node: fx.Node, given: Mapping[fx.Node, Any], sizes: Mapping[Any, int]) -> Any:
        def value_of(each: fx.Node) -> Any:
            if each in given:
                return given[each]
            if self._kinds[each] is Kind.SIZE:
                return size_at(each.meta["val"], sizes)
            return self._values[each]

        with torch.no_grad():
            return call(node, value_of)

    def _select(self, value: Any, axes: Axes) -> Any:
        leaves = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
        parts = [
            selected(leaf, axis, int(shape_at((axis.others,), self._values.sizes)[0]), self._index)
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        return parts[0] if isinstance(value, Tensor) else parts


def computes_with_count(node: fx.Node, kinds: Mapping[fx.Node, Kind], symbols: Symbols) -> bool:
    """Return whether an operator takes the number of tokens as a number, and not as a size."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    given = {argument.name: value for argument, value in zip(schema.arguments, node.args, strict=False)}
    types = {argument.name: str(argument.type) for argument in schema.arguments}
    for name, value in {**given, **node.kwargs}.items():
        if not isinstance(value, fx.Node) or kinds.get(value) is not Kind.SIZE:
            continue
        if types.get(name) in _NUMBERS and depends_on(value.meta["val"], symbols.tokens):
            return True
    return False


def agree(actual: Any, expected: Tensor) -> bool:
    """Return whether an operator gave the same for a selection of tokens, up to rounding."""
    if not isinstance(actual, Tensor) or actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not actual.is_floating_point():
        return bool((actual == expected).all())
    return torch.allclose(actual, expected, rtol=_TOLERANCE, atol=_TOLERANCE * _scale(expected), equal_nan=True)


def _scale(values: Tensor) -> float:
    """Return the size of random values that may lie beside the huge ones of a mask."""
    sizes = values.detach().double().abs().flatten()
    sizes = sizes[sizes.isfinite() & (sizes > 0)]
    return _SPREAD * float(sizes.kthvalue(1 + int(_LOWER_PART * (len(sizes) - 1))).values) if len(sizes) else 0.0
