"""The axes of traced values: which are tokens, which are rows of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import sympy
import torch
from torch.utils._pytree import tree_iter
from torch.utils._sympy.functions import FloorDiv
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

Shape = tuple[sympy.Expr, ...]
LAST: Final = "last"
FIRST: Final = "first"
ORDERS: Final = (LAST, FIRST)
"""Where tokens are in an axis that merges them with others: they vary fastest, or slowest."""


@dataclass(frozen=True)
class Symbols:
    """Torch's symbols for the number of rows and of tokens."""

    batch: sympy.Symbol
    tokens: sympy.Symbol


@dataclass(frozen=True)
class TokenAxis:
    """The axis of a value that holds its tokens.

    Attributes:
        index: the axis.
        others: how many values the axis holds for each token, as an expression; 1 unless other axes were merged into
            it.
        order: where the tokens are in a merged axis.
    """

    index: int
    others: sympy.Expr
    order: str = LAST

    @property
    def is_merged(self) -> bool:
        """Whether the axis holds more than tokens."""
        return bool(self.others != 1)


def expression(size: int | torch.SymInt | torch.SymFloat | torch.SymBool) -> sympy.Expr:
    """Return a size, or another number that is computed from sizes, as an expression."""
    if isinstance(size, int):
        return sympy.Integer(size)
    found = size.node.expr
    return found.replace(FloorDiv, _divided) if found.has(FloorDiv) else found


def _divided(size: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    """Return a quotient, without a division if it divides for all sizes, which torch doesn't see."""
    quotient = sympy.cancel(size / divisor)
    return quotient if quotient.is_polynomial() and _is_whole(quotient) else FloorDiv(size, divisor)


def shapes_of(node: torch.fx.Node) -> Iterator[Shape]:
    """Yield the shapes of the tensors that a node returns."""
    for value in tree_iter(node.meta.get("val")):
        if isinstance(value, torch.Tensor):
            yield tuple(map(expression, value.shape))


def depends_on(value: Any, symbol: sympy.Symbol) -> bool:
    """Return whether a size, or the shape of a tensor or of several, depends on a symbol."""
    for each in tree_iter(value):
        is_number = isinstance(each, (torch.SymInt, torch.SymFloat, torch.SymBool))
        sizes = each.shape if isinstance(each, torch.Tensor) else [each] if is_number else []
        if any(symbol in expression(size).free_symbols for size in sizes):
            return True
    return False


def token_axis(shape: Shape, tokens: sympy.Symbol) -> TokenAxis | None:
    """Return the axis of the tokens; None if there is none, more than one, or one that is shortened or padded."""
    axes = [index for index, size in enumerate(shape) if tokens in size.free_symbols]
    return token_axis_at(shape, axes[0], tokens) if len(axes) == 1 else None


def token_axis_at(shape: Shape, index: int, tokens: sympy.Symbol) -> TokenAxis | None:
    """Return an axis as that of the tokens; None if it is shortened or padded, or has more than all tokens."""
    others = sympy.cancel(shape[index] / tokens)
    return None if tokens in others.free_symbols or not _is_whole(others) else TokenAxis(index, others)


def _is_whole(expression: sympy.Expr) -> bool:
    return bool(sympy.denom(expression) == 1)


def size_at(size: Any, values: Mapping[sympy.Symbol, Any]) -> Any:
    """Return a size, an int or a number that torch traced from sizes, where the symbols have other values.

    Args:
        size: an int, a SymInt, or another number.
        values: the symbols' values, numbers or symbolic ones.
    """
    if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return size
    symbolic = size.node.expr
    if not symbolic.free_symbols:
        return type(size.node.hint)(symbolic)
    found = sympy_interp(PythonReferenceAnalysis, dict(values), symbolic)
    # Of numbers that are in the expression itself, it gives those of sympy.
    return type(size.node.hint)(found) if isinstance(found, sympy.Basic) else found


def shape_at(shape: Shape, values: Mapping[sympy.Symbol, Any]) -> list[Any]:
    """Return a shape where the symbols have other values."""
    return [
        int(size) if not size.free_symbols else sympy_interp(PythonReferenceAnalysis, dict(values), size)
        for size in shape
    ]


def picked(table: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Return rows of a table along an axis."""
    if not table.is_complex():
        return table.index_select(axis, index)
    # torch.onnx translates no index_select of complex numbers.
    return torch.view_as_complex(torch.view_as_real(table).index_select(axis, index))


def selected(tensor: torch.Tensor, axis: TokenAxis, others: int, index: torch.Tensor) -> torch.Tensor:
    """Return a tensor with only some of its tokens.

    Args:
        tensor: the values.
        axis: where its tokens are.
        others: the value of `axis.others`.
        index: the tokens to keep, in order.
    """
    if others == 1:
        return tensor.index_select(axis.index, index)
    count = tensor.shape[axis.index] // others
    sizes = (others, count) if axis.order == LAST else (count, others)
    apart = tensor.unflatten(axis.index, sizes)
    return apart.index_select(axis.index + (axis.order == LAST), index).flatten(axis.index, axis.index + 1)
