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
# The tables of cosines and sines for one number a position, and for two.
_KINDS: Final = {1: 2, 2: 4}


@dataclass(frozen=True)
class Rotation:
    """A rotation of features.

    Attributes:
        value: the rotated features.
        cos: the tables of cosines, one for each block of channels.
        sin: the same of sines.
    """

    value: ir.Value
    cos: tuple[ir.Value, ...]
    sin: tuple[ir.Value, ...]

    @property
    def blocks(self) -> int:
        """The number of blocks of channels that are rotated by numbers of their own."""
        return len(self.cos)


def match_rotation(evaluator: Evaluator, features: ir.Value) -> Rotation | None:
    """Return the rotation of features, or None."""
    layout = layout_of(features)
    if layout is None or layout.axis != 1 or len(layout.channels) != 1 or layout.width % 2:
        return None
    for value, tables in after_tables(evaluator, features, layout):
        blocks = next((count for count, number in _KINDS.items() if number == len(tables)), 0)
        own = layout_of(value)
        if not blocks or own is None or own.channels != layout.channels or layout.width % (2 * blocks):
            continue
        for order in itertools.permutations(tables):
            found = Rotation(value, order[:blocks], order[blocks:])
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
    given = {features: p, **{table: array.reshape(_shape(table, array)) for table, array in tables.items()}}
    made = evaluator.run([found.value], given, named(layout.sizes(rows, tokens), evaluator.graph)).get(found.value)
    if made is None or made.shape != p.shape:
        return False
    wanted = rotated(p, [tables[table] for table in found.cos], [tables[table] for table in found.sin])
    return bool(np.allclose(made, wanted, rtol=_AGREES, atol=_AGREES))


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
