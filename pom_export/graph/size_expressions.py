"""Dimensions that are computed from others, such as "tokens + 1", torch's name for an input one token longer."""

from __future__ import annotations

import ast
from collections.abc import Mapping

# None of our files has a longer one.
_LONGEST = 200


def size_of(axis: str | int, sizes: Mapping[str, int]) -> int | None:
    """Return the size of an axis: a number, a name, or sums and products of these; None if it cannot be determined.

    Args:
        axis: the axis, as in a file.
        sizes: the sizes of dimensions, by name.
    """
    if isinstance(axis, int) or axis in sizes:
        return axis if isinstance(axis, int) else sizes[axis]
    parsed = _parsed(axis)
    return None if parsed is None else _value(parsed, sizes)


def root_of(axis: str, size: int) -> tuple[str, int] | None:
    """Return the dimension that an axis is computed from, and its size; None if there is none.

    Args:
        axis: the axis, as in a file, such as "tokens + 1".
        size: the size of the axis.
    """
    names = names_in(axis)
    if axis in names or len(names) != 1:
        return None
    start, step = (size_of(axis, {names[0]: n}) for n in (0, 1))
    if start is None or step is None or step <= start or (size - start) % (step - start):
        return None
    return names[0], (size - start) // (step - start)


def names_in(axis: str) -> list[str]:
    """Return the names of the dimensions that an axis is computed from."""
    parsed = _parsed(axis)
    return [] if parsed is None else sorted({node.id for node in ast.walk(parsed) if isinstance(node, ast.Name)})


def _parsed(axis: str) -> ast.expr | None:
    try:
        return ast.parse(axis, mode="eval").body if len(axis) <= _LONGEST else None
    except (SyntaxError, ValueError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int | None:
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.Name):
        return sizes.get(node.id)
    if not isinstance(node, ast.BinOp):
        return None
    left, right = _value(node.left, sizes), _value(node.right, sizes)
    if left is None or right is None:
        return None
    if isinstance(node.op, ast.FloorDiv):
        return left // right if right else None
    operations = {ast.Add: left + right, ast.Sub: left - right, ast.Mult: left * right}
    return operations.get(type(node.op))
