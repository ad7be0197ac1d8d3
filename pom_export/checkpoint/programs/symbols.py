"""Create the size expressions of a program's inputs for torch, the only ones that it receives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import sympy
from torch.utils._sympy import functions

from pom_export.checkpoint.programs.checks import MalformedError
from pom_export.checkpoint.programs.sizes import Term
from pom_export.errors import reason_of, with_article

# Enough for the side of a mask, or a dimension derived from another.
_MOST_PARTS: Final = 24
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "Integer": sympy.Integer,
    "Add": sympy.Add,
    "Mul": sympy.Mul,
    "Pow": sympy.Pow,
    "Max": sympy.Max,
    "Min": sympy.Min,
    "Mod": functions.Mod,
    "PythonMod": functions.PythonMod,
    "FloorDiv": functions.FloorDiv,
    "CleanDiv": functions.CleanDiv,
    "CeilDiv": functions.CeilDiv,
}


def sympy_size(size: Term) -> Any:
    """Return the sympy expression of a size.

    Raises:
        MalformedError: inputs have no sizes of that kind.
    """
    if size.parts > _MOST_PARTS:
        raise MalformedError(f"an input has a size of {size.parts} terms")
    try:
        return _made(size)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise MalformedError(f"an input has a size that cannot be computed: {reason_of(error)}") from error


def _made(size: Term) -> Any:
    if size.name == "Symbol":
        return sympy.Symbol(*size.arguments, **dict(size.assumptions))
    if size.name not in _FUNCTIONS:
        raise MalformedError(f"an input has a size that is {with_article(size.name)}")
    return _FUNCTIONS[size.name](*(_made(term) if isinstance(term, Term) else term for term in size.arguments))
