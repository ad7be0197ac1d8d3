"""Recognise what is done with features: a mean over all tokens, over the earlier ones, or over those that a mask keeps.

A candidate is run on random features and masks at many numbers of tokens and compared with the op's own definition, so
that it does not matter how it is written: as a mean, a product with a triangle of ones, a cumulative sum, or an Einsum.
As for masks (see `pom_export.graph.masks`), a few sizes prove nothing about a window of 512 tokens: sizes around every
number that occurs in it are tried too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.features import NotFusedError
from pom_export.graph.fusing.reached import Reached, shared_sources, values_of_tokens
from pom_export.graph.fusing.reasons import why_not_a_mean
from pom_export.graph.fusing.sources import PAIRS, Source
from pom_export.graph.fusing.tokens import Layout, layout_of, named
from pom_export.graph.masks.kinds import FEW_VALUES, SIZES, TELLING, telling_sizes
from pom_export.graph.masks.parts import NotComputableError

MEAN, CAUSAL, FEATURES = "mean", "causal", "features"
# What keeps a sum of weights from being 0, such as 1e-6, is found after this.
_AGREES: Final = 2e-5
# Few channels are enough, where the graph allows any number.
_FEW_CHANNELS: Final = 3
_FIRST_SIZE: Final = 6
_FEW_TOKENS: Final = 2
# A weight that is smaller than what usually keeps a sum of weights from being 0.
_SMALL: Final = 1e-9
_LEAST: Final = (
    "sums of weights are divided by as they are; in the file given, small ones are replaced by a larger number"
)
# Operators of positions that have no part in where a window ends, unless what they compute is compared or rounded.
_COMPARING: Final = frozenset((
    *("BitwiseAnd", "Cast", "Ceil", "Clip", "Equal", "Floor", "Gather", "GatherElements", "GatherND", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Relu", "Round", "Sign", "Slice", "Trilu", "Where"),
))  # fmt: skip


@dataclass(frozen=True)
class Aggregate:
    """A mean of features.

    Attributes:
        value: the mean; for mode "features", the features themselves.
        mode: of the op.
        mask: where the weights of the tokens come from; None: all count.
        epsilon: added to the sum of the weights.
        spread: whether the value repeats the mean for every token.
        empty: what a row without tokens gives: "NaN", "0" or "other"; empty if there is no mask.
    """

    value: ir.Value
    mode: str
    mask: Source | None = None
    epsilon: float = 0.0
    spread: bool = False
    empty: str = ""
    notes: tuple[str, ...] = field(default=())


Transform = Callable[[Array], Array]


def match_aggregate(evaluator: Evaluator, features: ir.Value) -> Aggregate:
    """Return the mean of features.

    Raises:
        NotFusedError: there is none that the op computes; the text says why.
    """
    layout = layout_of(features, evaluator.axes)
    if layout is None:
        raise NotFusedError("the shape of its features is not known")
    reached = list(values_of_tokens(evaluator, features, layout))
    found = None
    for each in reached:
        found = match_mean(evaluator, features, layout, each) or found
    if found is None:
        raise NotFusedError(why_not_a_mean(evaluator, features, layout, reached))
    return found


def match_mean(
    evaluator: Evaluator,
    features: ir.Value,
    layout: Layout,
    reached: Reached,
    transform: Transform | None = None,
) -> Aggregate | None:
    """Return what a value is a mean of features for, or None.

    Args:
        evaluator: of the graph.
        features: the features.
        layout: their layout.
        reached: the value.
        transform: None, or what becomes of the features (B, N, ...) before they are averaged.

    Raises:
        NotFusedError: it is one for some numbers of tokens, or may be.
    """
    if not _has_channels(reached.value, layout):
        return None
    trial = _Trial(evaluator, features, layout, reached, transform)
    for source in shared_sources(evaluator, layout, reached):
        for mode in (FEATURES,) if source is not None and source.kind == PAIRS else (MEAN, CAUSAL):
            first = trial.compare(mode, source, _FIRST_SIZE)
            if not first:
                continue
            trial.confirm(mode, source)
            value = features if mode == FEATURES else reached.value
            found = Aggregate(value, mode, source, 0.0, mode == MEAN and trial.spread)
            return found if source is None or mode == FEATURES else trial.with_divisor(found)
    return None


def _has_channels(value: ir.Value, layout: Layout) -> bool:
    """Return whether a value may be a mean of features, judged by its shape."""
    shape = value.shape
    if shape is None:
        return True
    axes = {layout.rows, layout.axis} if len(shape) == len(layout.channels) + 2 else {0}
    return tuple(size for axis, size in enumerate(shape) if axis not in axes) == layout.channels


class _Trial:
    """Compares a value with means of random features."""

    def __init__(
        self,
        evaluator: Evaluator,
        features: ir.Value,
        layout: Layout,
        reached: Reached,
        transform: Transform | None,
    ) -> None:
        self.evaluator, self.features, self.layout, self.reached = evaluator, features, layout, reached
        self.spread = False
        self._transform = transform
        self._few = transform is None
        self._last: object = None
        self._made: tuple[Array, Array | None, Array | None] = (np.empty(0), None, None)

    def compare(self, mode: str, source: Source | None, tokens: int, batch: int = 2) -> bool:
        """Return whether the value is the mean, at a number of tokens."""
        return self._differs(mode, source, tokens, batch) is False

    def confirm(self, mode: str, source: Source | None) -> None:
        """Compare at all sizes that may tell the difference.

        Raises:
            NotFusedError: it is something else at one of them, or may be.
        """
        if self.layout.tokens is not None:
            return
        try:
            sizes = self._sizes()
        except NotComputableError as error:
            raise NotFusedError(f"how its tokens are weighted is not certain: {error}") from error
        self._check_positions()
        refused = 0
        for size in sorted(sizes):
            for batch in (1, 3) if size < _FIRST_SIZE else (2,):
                differs = self._differs(mode, source, size, batch)
                if differs:
                    name = "a mean of the earlier tokens" if mode == CAUSAL else "a mean"
                    raise NotFusedError(f"it is {name} at {_FIRST_SIZE} tokens, but not at {size}")
                refused = size if differs is None and not refused else refused
            if 1 < refused < size and differs is False:
                raise NotFusedError(f"what it computes at {refused} tokens is not known")

    def with_divisor(self, found: Aggregate) -> Aggregate:
        """Return an aggregate with what is added to its sum of weights, and what it gives without tokens."""
        assert found.mask is not None
        tokens = self.layout.tokens or _FEW_TOKENS
        epsilon = _added(
            self._row(found.mask, [1.0] * tokens), self._row(found.mask, [1.0] + [0.0] * (tokens - 1)), tokens
        )
        empty = self._row(found.mask, [0.0] * tokens)
        kind = "other" if empty is None or empty else "0"
        kind = "NaN" if empty is not None and np.isnan(empty) else kind
        small = None if found.mask.counts else self._row(found.mask, [_SMALL] * tokens)
        exact = small is None or abs(small * (_SMALL * tokens + epsilon) - _SMALL * tokens) <= _AGREES * _SMALL * tokens
        return Aggregate(found.value, found.mode, found.mask, epsilon, found.spread, kind, () if exact else (_LEAST,))

    def _row(self, source: Source, weights: Sequence[float]) -> float | None:
        """Return the mean of tokens that are all 1, with their weights."""
        rows, channels = self.layout.batch or 1, self._channels()
        ones = np.ones((rows, len(weights), *channels))
        made = self._run(ones, source, np.tile(weights, (rows, 1)))
        own = 1.0 if self._transform is None else float(self._transform(ones).reshape(-1)[0])
        return None if made is None else float(made.reshape(rows, -1, prod(channels))[0, -1, 0]) / own

    def _sizes(self) -> set[int]:
        constants, _ = self.evaluator.constants_behind(self.reached.fixed)
        return {*SIZES, *telling_sizes(constants)}

    def _check_positions(self) -> None:
        """Raise NotFusedError if something that ends at an unknown number of tokens is computed from positions."""
        _, nodes = self.evaluator.constants_behind(self.reached.fixed)
        suspects = [node for node in nodes if node.op_type not in TELLING and _is_compared(node, set(nodes))]
        inputs = [each for node in suspects for each in node.inputs if each is not None]
        computed = self.evaluator.run(inputs, {}, named(self.layout.sizes(2, 64), self.evaluator.root))
        for node in suspects:
            for each in node.inputs:
                if each is not None and each in computed and np.unique(computed[each]).size > FEW_VALUES:
                    raise NotFusedError(
                        f"{node.op_type} of positions is part of its weights: where they end is not certain"
                    )

    def _differs(self, mode: str, source: Source | None, tokens: int, batch: int) -> bool | None:
        """Return whether the value differs from the mean; None if it cannot be computed."""
        key = (source, tokens, batch)
        if key != self._last:
            self._made, self._last = self._draw(source, tokens, batch), key
        p, weights, made = self._made
        return None if made is None else not self._is_mean(made, p, mode, weights)

    def _draw(self, source: Source | None, tokens: int, batch: int) -> tuple[Array, Array | None, Array | None]:
        """Return random features and weights, and the value computed of them."""
        generator = np.random.default_rng(tokens)
        rows, length = self.layout.batch or batch, self.layout.tokens or tokens
        p = generator.uniform(-1, 2, (rows, length, *self._channels()))
        if self._transform is None and tokens == _FIRST_SIZE:
            # Of all magnitudes, so that nothing is clamped before or after the mean.
            p *= 10.0 ** np.resize([0, 6, -3], p.shape[-1])
        weights = None if source is None else source.draw(generator, rows, length)
        made = self._run(p, source, weights)
        if made is None and self._few:
            self._few = False
            return self._draw(source, tokens, batch)
        return p, weights, made

    def _channels(self) -> tuple[int, ...]:
        return (*self.layout.channels[:-1], _FEW_CHANNELS) if self._few else self.layout.channels

    def _run(self, p: Array, source: Source | None, weights: Array | None) -> Array | None:
        given: dict[ir.Value, Array] = {self.features: self.layout.placed(p)}
        sizes = self.layout.sizes(p.shape[0], p.shape[1])
        if source is not None and weights is not None:
            given[source.value] = source.shaped(weights)
            sizes |= source.sizes(weights)
        value = self.reached.value
        made = self.evaluator.run([value], given, named(sizes, self.evaluator.root)).get(value)
        return None if made is None else self.layout.ordered(made)

    def _is_mean(self, made: Array, p: Array, mode: str, weights: Array | None) -> bool:
        wanted = _wanted(p if self._transform is None else self._transform(p), mode, weights)
        shapes = [wanted.shape] if mode != MEAN else [wanted.shape, (wanted.shape[0], *wanted.shape[2:]), p.shape]
        if made.shape not in shapes:
            return False
        if mode == MEAN and made.shape == p.shape:
            self.spread = self.spread or p.shape[1] > 1
            wanted = np.broadcast_to(wanted, p.shape)
        far = np.abs(made.reshape(wanted.shape) - wanted)
        scale = np.abs(wanted).max((0, 1))
        return bool((far <= _AGREES * scale).all())


def _wanted(p: Array, mode: str, weights: Array | None) -> Array:
    """Return what the op computes of features (B, N, ...), with weights (B, N), or (B, T, N) of mode "features"."""
    flat = p.reshape(*p.shape[:2], -1)
    if mode == FEATURES:
        assert weights is not None
        means = weights @ flat / weights.sum(-1, keepdims=True)
        result: Array = means.reshape(*means.shape[:2], *p.shape[2:])
        return result
    weights = np.ones(p.shape[:2]) if weights is None else weights
    column = weights.reshape(*weights.shape, *[1] * (p.ndim - 2))
    if mode == CAUSAL:
        result = np.cumsum(p * column, 1) / np.cumsum(column, 1)
    else:
        result = (p * column).sum(1, keepdims=True) / column.sum(1, keepdims=True)
    return result


def _added(mean: float | None, of_one: float | None, tokens: int) -> float:
    """Return what is added to sums of weights, given the mean of ones over tokens, and over only one of them.

    Both are off by the same factor where constants of the features are rounded.
    """
    if mean is None or of_one is None or tokens == 1:
        added = 0.0 if mean is None else 1 / mean - 1
    else:
        ratio = mean / of_one
        added = tokens * (ratio - 1) / (tokens - ratio)
    return float(f"{added:.6g}") if added > 1e-13 else 0.0


def _is_compared(node: ir.Node, among: set[ir.Node]) -> bool:
    waiting, seen = [node], set()
    while waiting:
        for output in waiting.pop().outputs:
            for user, _ in output.uses():
                if user in among and user not in seen:
                    seen.add(user)
                    waiting.append(user)
    return any(user.op_type in _COMPARING for user in seen)
