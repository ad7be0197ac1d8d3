"""The stateful form of operators that see a token and a fixed number of those before it, such as a convolution."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx

from pom_export.graph.exported_model import PAST_CONVOLUTION
from pom_export.graph.stateful.kinds import FILLED, Kind
from pom_export.graph.stateful.locality import axis_of, clean_axes
from pom_export.graph.stateful.positions import is_pointwise
from pom_export.graph.stateful.run import Run, StatePart
from pom_export.graph.stateful.shapes import Symbols, shape_at, shapes_of, size_at, token_axis
from pom_export.graph.stateful.values import Values, call
from pom_export.models.streaming import last_tokens

# The tokens on which operators are tried; a window may be half as long.
TRIED: Final = 256
_MOST_NODES: Final = 16
_WHOLE: Final = 2**62
_ATEN = torch.ops.aten
_SHIFTING: Final = frozenset(
    {
        *(_ATEN.pad.default, _ATEN.constant_pad_nd.default, _ATEN.slice.Tensor, _ATEN.narrow.default),
        *(_ATEN.cat.default, _ATEN.stack.default, _ATEN.roll.default, _ATEN.unfold.default, _ATEN.select.int),
        *(_ATEN.slice_scatter.default, _ATEN.select_scatter.default, _ATEN.copy.default),
        *(_ATEN.conv1d.default, _ATEN.conv1d.padding, _ATEN.conv2d.default, _ATEN.conv2d.padding),
        *(_ATEN.convolution.default, _ATEN.avg_pool1d.default, _ATEN.max_pool1d.default),
        *(_ATEN.view.default, _ATEN.reshape.default, _ATEN.unsqueeze.default, _ATEN.squeeze.dim),
        *(_ATEN.permute.default, _ATEN.transpose.int, _ATEN.expand.default, _ATEN.clone.default, _ATEN.alias.default),
        *(_ATEN.linear.default, _ATEN._unsafe_view.default, _ATEN.split.Tensor, _ATEN.split_with_sizes.default),
        *(_ATEN.chunk.default, operator.getitem, *FILLED),
        # With the statistics of training, this is a product and a sum.
        _ATEN._native_batch_norm_legit_no_training.default,
    }
)
_TOLERANCE: Final = 1e-5


@dataclass(frozen=True)
class Window:
    """Operators that are run on a call's tokens and the last ones before them.

    Attributes:
        nodes: the operators, in order; the last one's value is used by others.
        entries: the values of tokens that they take.
        index: its place among the windows of the model.
        past: how many earlier tokens it sees.
        rests: for each entry, its width with all axes but those of rows and tokens merged.
    """

    nodes: Sequence[fx.Node]
    entries: Sequence[fx.Node]
    index: int
    past: int
    rests: Sequence[int] = field(default_factory=tuple)

    def _names(self) -> list[str]:
        if len(self.entries) == 1:
            return [f"{PAST_CONVOLUTION}.{self.index}"]
        return [f"{PAST_CONVOLUTION}.{self.index}.{place}" for place in range(len(self.entries))]

    def parts(self) -> Sequence[StatePart]:
        """Return the last tokens of each entry."""
        if not self.past:
            return []
        return [
            StatePart(name, (self.past, rest), entry.meta["val"].dtype)
            for name, entry, rest in zip(self._names(), self.entries, self.rests, strict=True)
        ]

    def run(self, run: Run) -> Tensor:
        """Return the operators' value for the call's tokens."""
        tokens = run.symbols.tokens
        sizes = {**run.sizes, tokens: run.tokens + self.past}
        seen: dict[fx.Node, Tensor] = {}
        for name, entry in zip(self._names(), self.entries, strict=True):
            value = run.values[entry]
            if self.past:
                plain = _tokens_second(value, entry, run.symbols)
                wide = plain[..., None] if plain.dim() == 2 else plain.flatten(2)
                joined = torch.cat([run.past[name], wide], dim=1)
                run.present[name] = last_tokens(joined, self.past, run.mask)
                value = _tokens_back(joined, entry, run.symbols, sizes)
            seen[entry] = value
        result = _compute(self.nodes, seen, run.kinds, run.constant, sizes)
        return result.narrow(axis_of(self.nodes[-1], run.symbols), self.past, run.tokens)


def _has_reach(node: fx.Node) -> bool:
    """Return whether an operator's reach over tokens shows on random values.

    A sum, a count or an any() over tokens reaches all of them, but may not change where it is large already.
    """
    return is_pointwise(node) or node.target in _SHIFTING


def _keeps_all(node: fx.Node) -> bool:
    """Return whether a node is a slice of a whole axis, which torch adds for each axis that an index leaves alone."""
    if node.target is not torch.ops.aten.slice.Tensor:
        return False
    given: list[Any] = [*node.args, None, None, None]
    start, end = given[2:4]
    return start in {None, 0} and isinstance(end, int) and end >= _WHOLE


def _tokens_second(value: Tensor, node: fx.Node, symbols: Symbols) -> Tensor:
    """Return a value as (B, N, ...)."""
    rows, tokens = _axes(node, symbols)
    return value.movedim((rows, tokens), (0, 1))


def _tokens_back(value: Tensor, node: fx.Node, symbols: Symbols, sizes: Mapping[Any, Any]) -> Tensor:
    """Return values (B, N, D) in the layout of a node."""
    rows, tokens = _axes(node, symbols)
    shape = next(shapes_of(node))
    rest = [size for axis, size in enumerate(shape) if axis not in {rows, tokens}]
    plain = value.reshape([value.shape[0], value.shape[1], *shape_at(tuple(rest), sizes)])
    return plain.movedim((0, 1), (rows, tokens))


def _axes(node: fx.Node, symbols: Symbols) -> tuple[int, int]:
    shape = next(shapes_of(node))
    axis = token_axis(shape, symbols.tokens)
    assert axis is not None
    return shape.index(symbols.batch), axis.index


def _compute(
    nodes: Sequence[fx.Node],
    given: Mapping[fx.Node, Any],
    kinds: Mapping[fx.Node, Kind],
    constant: Any,
    sizes: Mapping[Any, Any],
) -> Any:
    known = dict(given)

    def value_of(each: fx.Node) -> Any:
        if kinds[each] is Kind.SIZE:
            return size_at(each.meta["val"], sizes)
        return known[each] if each in known else constant(each)

    for node in nodes:
        known[node] = call(node, value_of)
    return known[nodes[-1]]


class WindowFinder:
    """Finds operators that see a fixed number of earlier tokens.

    Args:
        order: the traced nodes in order.
        kinds: what each value depends on.
        symbols: torch's symbols for the sizes.
        values: values of the nodes on the example.
    """

    def __init__(
        self, order: Sequence[fx.Node], kinds: Mapping[fx.Node, Kind], symbols: Symbols, values: Values
    ) -> None:
        self._order = {node: index for index, node in enumerate(order)}
        self._kinds, self._symbols, self._values = kinds, symbols, values
        self._generator = torch.Generator().manual_seed(1)

    def find(self, start: fx.Node, index: int) -> Window | None:
        """Return the smallest group of operators from `start` on that sees a window; None if there is none."""
        region = self._closed([start])
        while len(region) <= _MOST_NODES:
            window = self._as_window(region, index)
            if window is not None:
                return window
            following = {user for node in region for user in node.users if user not in region and user in self._kinds}
            following = {node for node in following if self._kinds[node] is Kind.TOKENS}
            if not following:
                return None
            region = self._closed([*region, min(following, key=self._order.__getitem__)])
        return None

    def _closed(self, region: Sequence[fx.Node]) -> list[fx.Node]:
        """Return a group with the operators that shorten or pad what the group takes, in order."""
        found = dict.fromkeys(region)
        stack = list(region)
        while stack and len(found) <= _MOST_NODES:
            for each in stack.pop().all_input_nodes:
                if each in found or self._kinds[each] is not Kind.TOKENS:
                    continue
                if not self._is_plain(each) or _keeps_all(each):
                    found[each] = None
                    stack.append(each)
        return sorted(found, key=self._order.__getitem__)

    def _as_window(self, region: Sequence[fx.Node], index: int) -> Window | None:
        last = region[-1]
        axes = clean_axes(last, self._symbols)
        inside = set(region)
        if not all(_has_reach(node) for node in region):
            return None
        if axes is None or len(axes) != 1 or axes[0].is_merged:
            return None
        if any(user not in inside and user in self._kinds for node in region[:-1] for user in node.users):
            return None
        taken = dict.fromkeys(each for node in region for each in node.all_input_nodes if each not in inside)
        entries = [each for each in taken if self._kinds[each] is Kind.TOKENS]
        if any(self._kinds[each] is Kind.POSITION for each in taken) or not all(map(self._is_plain, entries)):
            return None
        past = self._past(region, entries)
        if past is None:
            return None
        window = Window(region, entries, index, past, [self._rest(entry) for entry in entries])
        return window if self._starts_from_zeros(window) else None

    def _is_plain(self, node: fx.Node) -> bool:
        axes = clean_axes(node, self._symbols)
        shape = next(shapes_of(node))
        return axes is not None and len(axes) == 1 and not axes[0].is_merged and self._symbols.batch in shape

    def _rest(self, node: fx.Node) -> int:
        rest = 1
        for size in next(shapes_of(node)):
            if size not in {self._symbols.batch, self._symbols.tokens}:
                rest *= int(size)
        return rest

    def _draw(self, node: fx.Node, tokens: int) -> Tensor:
        sizes = {**self._values.sizes, self._symbols.tokens: tokens}
        shape = shape_at(next(shapes_of(node)), sizes)
        dtype = node.meta["val"].dtype
        if dtype.is_floating_point:
            return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(dtype)
        return torch.randint(0, 2, shape, generator=self._generator).to(dtype)

    def _compute(self, region: Sequence[fx.Node], given: Mapping[fx.Node, Tensor], tokens: int) -> Tensor:
        sizes = {**self._values.sizes, self._symbols.tokens: tokens}
        with torch.no_grad():
            return _compute(region, given, self._kinds, self._values.__getitem__, sizes)

    def _past(self, region: Sequence[fx.Node], entries: Sequence[fx.Node]) -> int | None:
        """Return how many earlier tokens each token sees; None if it sees later ones, or too many."""
        given = {entry: self._draw(entry, TRIED) for entry in entries}
        axis = axis_of(region[-1], self._symbols)
        most = 0
        try:
            before = self._compute(region, given, TRIED)
            if before.shape[axis] != TRIED:
                return None
            for changed in (0, TRIED // 3, TRIED - 1):
                others = {entry: self._with_other(value, entry, changed) for entry, value in given.items()}
                differs = (self._compute(region, others, TRIED) != before).movedim(axis, 0)
                where = differs.reshape(TRIED, -1).any(1).nonzero().flatten()
                if where.numel() and int(where[0]) < changed:
                    return None
                most = max(most, int(where[-1]) - changed if where.numel() else 0)
        except Exception:  # noqa: BLE001 (whatever operators raise at other sizes)
            return None
        return most if most <= TRIED // 2 else None

    def _with_other(self, value: Tensor, entry: fx.Node, token: int) -> Tensor:
        other = value.clone()
        place = other.narrow(axis_of(entry, self._symbols), token, 1)
        if place.dtype == torch.bool:
            place.logical_not_()
        else:
            place.add_(torch.rand(place.shape, generator=self._generator) + 1 if place.is_floating_point() else 1)
        return other

    def _starts_from_zeros(self, window: Window) -> bool:
        """Return whether zeros in place of earlier tokens give what the operators give at the start of a sequence.

        And whether that is the same, however many tokens follow.
        """
        given = {entry: self._draw(entry, TRIED) for entry in window.entries}
        longer = {}
        for entry, value in given.items():
            axis = axis_of(entry, self._symbols)
            zeros = torch.zeros_like(value.narrow(axis, 0, window.past))
            longer[entry] = torch.cat([zeros, value], axis)
        last = axis_of(window.nodes[-1], self._symbols)
        expected = self._compute(window.nodes, given, TRIED)
        found = self._compute(window.nodes, longer, TRIED + window.past).narrow(last, window.past, TRIED)
        bound = _TOLERANCE * float(expected.abs().max()) if expected.is_floating_point() else 0.0
        if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=bound):
            return False
        half = TRIED // 2
        fewer = {entry: value.narrow(axis_of(entry, self._symbols), 0, half) for entry, value in given.items()}
        first = expected.narrow(last, 0, half)
        return torch.allclose(self._compute(window.nodes, fewer, half), first, rtol=_TOLERANCE, atol=bound)
