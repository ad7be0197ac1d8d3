"""Find the sizes at which a model takes another branch than when it was traced, beyond what bounds express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from pom_export.graph.size_bounds import user_inputs

# Small sizes, among which a condition such as `tokens % 4 == 0` changes.
_SMALL = range(2, 10)
_MOST_OF_A_CONDITION = 3


def branch_sizes(program: ExportedProgram, axes: Sequence[Sequence[int | str]]) -> dict[str, list[int]]:
    """Return, by dynamic dimension, sizes at which a condition on sizes is false that was true while torch traced.

    A graph contains one branch of each condition, so it may compute something else at these sizes. For `tokens == 512`,
    that is every size but 512, which no bound expresses. Each condition contributes a few sizes, with the other
    dimensions as in the example. Dimensions without such sizes are left out.

    Args:
        program: the program as torch traced it.
        axes: for each input, in order: sizes, and the file's names of dynamic dimensions.
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
    """Yield sizes at which a condition is false, starting with those closest to where it changes."""
    alone = condition.subs({other: size for other, size in example.items() if other != symbol})
    if alone.free_symbols != {symbol}:
        return  # it depends on a size that no input has, or on none at all
    for size in dict.fromkeys([*_turning_points(alone, symbol), *_SMALL]):
        if size >= _SMALL.start and alone.subs(symbol, size) == sympy.false:
            yield size


def _turning_points(condition: sympy.Basic, symbol: sympy.Symbol) -> Iterator[int]:
    """Yield sizes around the numbers in a condition, and around the point where its sides are equal."""
    points = [int(number) for number in condition.atoms(sympy.Integer)]
    if isinstance(condition, sympy.core.relational.Relational):
        difference = condition.lhs - condition.rhs
        slope = sympy.diff(difference, symbol) if difference.is_polynomial(symbol) else sympy.S.Zero
        if slope.is_Integer and slope != 0:
            points.insert(0, int(-difference.subs(symbol, 0) / slope))
    for point in points:
        yield from (point, point + 1, point - 1)
