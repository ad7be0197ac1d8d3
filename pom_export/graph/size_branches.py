"""Find the sizes at which a model takes another branch than when it was traced, beyond what bounds express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from pom_export.graph.size_bounds import user_inputs

# Sizes near which a condition such as `tokens % 4 == 0` changes.
_SMALL = range(2, 10)
_MOST_OF_A_CONDITION = 3


def branch_sizes(program: ExportedProgram, axes: Sequence[Sequence[int | str]]) -> dict[str, list[int]]:
    """Return, by dynamic dimension, sizes at which a condition on sizes is false that held while torch traced.

    A graph has one branch of each condition, so that these sizes are where it may compute something else: for
    `tokens == 512` that is 512 alone, which no bound tells. Of each condition a few sizes are given, with the other
    dimensions as they were in the example; dimensions without any are left out.

    Args:
        program: as torch traced it.
        axes: of each input, in order: sizes, and the names that dynamic dimensions have in the file.
    """
    symbols: dict[sympy.Symbol, tuple[str, int]] = {}
    conditions: list[sympy.Basic] = []
    for fake, named in zip(user_inputs(program), axes, strict=True):
        shape: Sequence[Any] = fake.shape  # of ints and SymInts
        for size, name in zip(shape, named, strict=True):
            if isinstance(size, torch.SymInt) and isinstance(name, str) and size.node.expr.is_Symbol:
                symbols.setdefault(size.node.expr, (name, size.node.hint))
                conditions = conditions or [guard.expr for guard in size.node.shape_env.guards]
    example = {symbol: size for symbol, (_, size) in symbols.items()}
    found: dict[str, set[int]] = {}
    for condition in conditions:
        for symbol in condition.free_symbols & symbols.keys():
            sizes = list(_sizes_where_false(condition, symbol, example))[:_MOST_OF_A_CONDITION]
            found.setdefault(symbols[symbol][0], set()).update(sizes)
    return {name: sorted(sizes) for name, sizes in found.items() if sizes}


def _sizes_where_false(
    condition: sympy.Basic, symbol: sympy.Symbol, example: Mapping[sympy.Symbol, int]
) -> Iterator[int]:
    """Yield sizes at which a condition is false, those nearest to where it changes first."""
    alone = condition.subs({other: size for other, size in example.items() if other != symbol})
    if alone.free_symbols != {symbol}:
        return  # it depends on a size that is no input's, or on nothing any more
    for size in dict.fromkeys([*_turning_points(alone, symbol), *_SMALL]):
        if size >= _SMALL.start and alone.subs(symbol, size) == sympy.false:
            yield size


def _turning_points(condition: sympy.Basic, symbol: sympy.Symbol) -> Iterator[int]:
    """Yield the sizes around the numbers that a condition names, and around where its sides are equal."""
    points = [int(number) for number in condition.atoms(sympy.Integer)]
    if isinstance(condition, sympy.core.relational.Relational):
        difference = condition.lhs - condition.rhs
        slope = sympy.diff(difference, symbol) if difference.is_polynomial(symbol) else sympy.S.Zero
        if slope.is_Integer and slope != 0:
            points.insert(0, int(-difference.subs(symbol, 0) / slope))
    for point in points:
        yield from (point, point + 1, point - 1)
