"""Recognise a rotation of features by the positions of their tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.tokens import Layout, after_tables, layout_of, named

_TOKENS: Final = 5
_AGREES: Final = 1e-9
_FARTHEST: Final = 6
_MATRIX: Final = 2
# The tables of cosines and sines for one number a position, and for two.
_KINDS: Final = {1: 2, 2: 4}


@dataclass(frozen=True)
class Rotation:
    """A rotation of features.

    Attributes:
        value: the rotated features.
        cos: the tables of cosines, one for each block of channels.
        sin: the same of sines.
        twice: whether each table holds its columns twice.
    """

    value: ir.Value
    cos: tuple[ir.Value, ...]
    sin: tuple[ir.Value, ...]
    twice: bool = False

    @property
    def blocks(self) -> int:
        """The number of blocks of channels that are rotated by numbers of their own."""
        return len(self.cos)


def match_rotation(evaluator: Evaluator, features: ir.Value) -> Rotation | None:
    """Return the rotation of features, or None."""
    layout = layout_of(features, evaluator.axes)
    if layout is None or not layout.is_ordered or len(layout.channels) != 1 or layout.width % 2:
        return None
    for value, tables in after_tables(evaluator, features, layout):
        blocks = next((count for count, number in _KINDS.items() if number == len(tables)), 0)
        own = layout_of(value, evaluator.axes)
        if not blocks or own is None or own.channels != layout.channels or layout.width % (2 * blocks):
            continue
        twice = all(_columns(table) == layout.width for table in tables) and blocks == 1
        if twice and not all(_holds_twice(evaluator, table, layout) for table in tables):
            continue
        for order in itertools.permutations(tables):
            found = Rotation(value, order[:blocks], order[blocks:], twice)
            if all(_agrees(evaluator, features, layout, found, batch) for batch in (1, 2)):
                return found
    return None


def _agrees(evaluator: Evaluator, features: ir.Value, layout: Layout, found: Rotation, batch: int) -> bool:
    """Return whether the value is the rotation by these tables, at random."""
    generator = np.random.default_rng(0)
    rows, tokens = layout.batch or batch, layout.tokens or _TOKENS
    p = generator.standard_normal((rows, tokens, layout.width))
    half = layout.width // (2 * found.blocks)
    tables = {table: generator.standard_normal((tokens, half)) for table in (*found.cos, *found.sin)}
    held = {table: np.tile(array, (1, 1 + found.twice)) for table, array in tables.items()}
    given = {features: p, **{table: array.reshape(_shape(table, array)) for table, array in held.items()}}
    made = evaluator.run([found.value], given, named(layout.sizes(rows, tokens), evaluator.root)).get(found.value)
    if made is None or made.shape != p.shape:
        return False
    wanted = rotated(p, [tables[table] for table in found.cos], [tables[table] for table in found.sin])
    return bool(np.allclose(made, wanted, rtol=_AGREES, atol=_AGREES))


def _columns(table: ir.Value) -> int:
    return int(str((table.shape or [0])[-1]))


def _holds_twice(evaluator: Evaluator, table: ir.Value, layout: Layout) -> bool:
    """Return whether the second half of a table's columns always equals the first."""
    tokens = layout.tokens or _TOKENS
    sizes = named(layout.sizes(layout.batch or 1, tokens), evaluator.root)
    if not evaluator.depends_on_data(table):
        made = evaluator.run([table], {}, sizes).get(table)
        return made is not None and _are_equal_halves(made)
    for source in evaluator.sources(table, _FARTHEST)[1:]:
        shape = [tokens if not isinstance(size, int) else size for size in source.shape or ()]
        if source.dtype is None or not source.dtype.is_floating_point() or len(shape) < _MATRIX:
            return False
        drawn = np.random.default_rng(0).standard_normal(shape)
        made = evaluator.run([table], {source: drawn}, sizes).get(table)
        if made is not None and _are_equal_halves(made):
            return True
    return False


def _are_equal_halves(array: Array) -> bool:
    first, second = np.split(array, 2, -1)
    return bool(np.array_equal(first, second))


def _shape(table: ir.Value, array: Array) -> tuple[int, ...]:
    rank = len(table.shape or array.shape)
    return (*(1,) * (rank - array.ndim), *array.shape)


def rotated(p: Array, cos: list[Array], sin: list[Array]) -> Array:
    """Return features (B, N, C) rotated by tables (N, C / 2 / blocks), one for each block."""
    return np.concatenate(list(_blocks(p, cos, sin)), -1)


def _blocks(p: Array, cos: list[Array], sin: list[Array]) -> Iterator[Array]:
    for part, c, s in zip(np.split(p, len(cos), -1), cos, sin, strict=True):
        first, second = np.split(part, 2, -1)
        yield first * c - second * s
        yield second * c + first * s
