"""Find where a mask comes from: the value from which the weights of tokens are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.tokens import Layout

KEYS, PAIRS = "keys", "pairs"
# How far back the source of a mask is looked for.
_FARTHEST: Final = 12
_PAIR: Final = 2


@dataclass(frozen=True)
class Source:
    """A value from which the weights of tokens are computed.

    Attributes:
        value: the value.
        kind: KEYS: one weight a token, (B or 1, N); PAIRS: one for each query and token, (B or 1, T, N).
        axes: its axes that are more than 1, or may be: those of the batch, the queries and the tokens; those left out
            have size 1.
        batched: whether the first of these is the batch.
        inverted: whether it says which tokens do not count; only if it is bool.
    """

    value: ir.Value
    kind: str
    axes: tuple[int, ...]
    batched: bool
    inverted: bool = False

    @property
    def is_bool(self) -> bool:
        """Whether the value says which tokens count."""
        return self.value.dtype == ir.DataType.BOOL

    @property
    def counts(self) -> bool:
        """Whether the value cannot hold weights between 0 and 1."""
        return self.value.dtype is not None and not self.value.dtype.is_floating_point()

    @property
    def changes(self) -> int:
        """How many nodes are needed to make the op's mask from it."""
        return (len(self.value.shape or ()) != _PAIR) + (self.counts and not self.is_bool)

    def draw(self, generator: np.random.Generator, rows: int, tokens: int) -> Array:
        """Draw weights that such a value may hold, (B, N) or (B, T, N); each row has a positive sum, from its start."""
        queries = () if self.kind == KEYS else (self._queries(tokens),)
        shape = (rows if self.batched else 1, *queries, tokens)
        dtype = self.value.dtype
        if dtype == ir.DataType.BOOL:
            weights = generator.integers(0, 2, shape).astype(np.float64)
        elif dtype is not None and dtype.is_integer():
            weights = generator.choice(np.array([0.0, 1.0, 1.0, 3.0]), shape)
        else:
            weights = generator.choice(np.array([0.0, 1.0, 0.5, 2.0, 0.25]), shape)
        weights[..., 0] = 1
        return np.broadcast_to(weights, (rows, *shape[1:])).copy()

    def shaped(self, weights: Array) -> Array:
        """Return weights in the value's shape and type."""
        given = weights if self.batched else weights[0]
        given = given == 0 if self.inverted else given
        shape = [1] * len(self.value.shape or ())
        for axis, size in zip(self.axes, given.shape, strict=True):
            shape[axis] = size
        given = given.transpose(np.argsort(self.axes))
        dtype = self.value.dtype
        kind = np.float64 if dtype is None or dtype.is_floating_point() else dtype.numpy()
        return given.reshape(shape).astype(kind)

    def sizes(self, weights: Array) -> dict[str, int]:
        """Return the sizes of the value's named dimensions, given weights."""
        shape, array = self.value.shape or (), self.shaped(weights)
        return {
            size.value: array.shape[axis]
            for axis, size in enumerate(shape)
            if not isinstance(size, int) and size.value is not None
        }

    def _queries(self, tokens: int) -> int:
        size = (self.value.shape or ())[self.axes[-2]]
        own = (self.value.shape or ())[self.axes[-1]]
        if isinstance(size, int):
            return size
        return tokens if size == own else tokens + 1


def sources_of(evaluator: Evaluator, value: ir.Value, layout: Layout) -> list[Source]:
    """Return the values from which the weights in a value may come, the nearest first; empty if it holds no weights."""
    found = (_source(each, layout) for each in evaluator.sources(value, _FARTHEST))
    return [source for source in found if source is not None]


def _source(value: ir.Value, layout: Layout) -> Source | None:
    """Return how a value holds weights, judged by its shape."""
    shape = value.shape
    if shape is None or not len(shape):
        return None
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    if layout.rows > layout.axis and len(axes) == _PAIR:
        sizes = [shape[axis] for axis in axes]
        if _is(sizes[0], layout.tokens, layout.names[1]) and _is(sizes[1], layout.batch, layout.names[0]):
            return Source(value, KEYS, (axes[1], axes[0]), batched=True)
    if not axes or not _is(shape[axes[-1]], layout.tokens, layout.names[1]):
        # A single token of a fixed shape.
        return None
    batched = len(axes) > 1 and _is(shape[axes[0]], layout.batch, layout.names[0])
    others = len(axes) - 1 - batched
    if others > 1:
        return None
    if others and layout.tokens is None and isinstance(shape[axes[-2]], int):
        return None
    return Source(value, PAIRS if others else KEYS, tuple(axes), batched)


def _is(size: int | ir.SymbolicDim, fixed: int | None, name: str | None) -> bool:
    if isinstance(size, int):
        return size == fixed
    return size.value is not None and size.value == name
