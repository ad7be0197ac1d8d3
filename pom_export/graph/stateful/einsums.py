"""Give operands of an einsum an axis of rows: positions differ from row to row, which its equation doesn't know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import sympy
import torch
from torch import Tensor, fx

from pom_export.graph.stateful.shapes import shapes_of
from pom_export.graph.stateful.values import operator_of

EINSUM: Final = torch.ops.aten.einsum.default


class WithRows(NamedTuple):
    """An operand of an einsum with an axis of rows before those of its term."""

    value: Tensor


def rows_letter(node: fx.Node, operand: fx.Node, batch: sympy.Symbol) -> str | None:
    """Return the letter of the rows in an einsum's equation; None if an operand can't get an axis of that letter."""
    equation = str(node.args[0]).replace(" ", "") if node.target is EINSUM else "..."
    if "." in equation or "->" not in equation:
        return None
    inputs, output = equation.split("->")
    rows = [letter for letter, size in zip(output, next(shapes_of(node)), strict=True) if size == batch]
    operands: Any = node.args[1]
    terms = [term for term, each in zip(inputs.split(","), operands, strict=True) if each is operand]
    return rows[0] if len(rows) == 1 and all(rows[0] not in term for term in terms) else None


def run_operator(node: fx.Node, batch: sympy.Symbol, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operator; an einsum may have operands with rows."""
    if node.target is not EINSUM or not any(isinstance(each, WithRows) for each in args[1]):
        return operator_of(node)(*args, **kwargs)
    inputs, output = args[0].replace(" ", "").split("->")
    terms = []
    operands: Any = node.args[1]
    for term, each, operand in zip(inputs.split(","), args[1], operands, strict=True):
        letter = rows_letter(node, operand, batch) if isinstance(each, WithRows) else ""
        terms.append(f"{letter}{term}")
    values = [each.value if isinstance(each, WithRows) else each for each in args[1]]
    return EINSUM(f"{','.join(terms)}->{output}", values, **kwargs)
