"""Expressions of sizes, as sympy writes them: read by a grammar of our own, never evaluated as Python.

    expression: NAME | NAME "(" [argument {"," argument}] ")"
    argument:   expression | INTEGER | TEXT | NAME "=" (INTEGER | NAME)

What an expression could grow to is bounded before sympy, which computes at once what it can, is given it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sympy  # type: ignore[import-untyped]
from sympy.logic.boolalg import Boolean  # type: ignore[import-untyped]
from torch.utils._sympy import functions

from pom_export.checkpoint.programs.checks import LARGEST, MalformedError, UnsafeError, shown
from pom_export.errors import printable

_LONGEST: Final = 8192
_DEEPEST: Final = 24
_MOST_PARTS: Final = 128  # of one expression
_MOST_PARTS_IN_ALL: Final = 8192  # of all different ones of a program
_MOST_BITS: Final = 256
_HIGHEST_DEGREE: Final = 16
_LARGEST_EXPONENT: Final = 8
_MOST_SYMBOLS: Final = 256

# Sizes, and those that depend on data; torch counts up to the number of the latter.
_SYMBOL: Final = re.compile(r"s\d{1,6}|u\d{1,4}")
_FLOAT: Final = re.compile(r"-?\d{1,20}(\.\d{1,40})?(e[+-]?\d{1,2})?")
_TOKEN: Final = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<integer>-?\d+)|'(?P<text>[^'\\]*)'|(?P<mark>[(),=]))")
_ASSUMPTIONS: Final = frozenset({"positive", "integer", "nonnegative", "negative", "nonpositive", "real", "zero"})
_CONSTANTS: Final = {"true": sympy.true, "false": sympy.false}

_MANY: Final = 64
# Name: the least and most arguments, and what makes the expression of them.
_FUNCTIONS: Final[dict[str, tuple[int, int, Callable[..., Any]]]] = {
    "Add": (2, _MANY, sympy.Add),
    "Mul": (2, _MANY, sympy.Mul),
    "Max": (2, 16, sympy.Max),
    "Min": (2, 16, sympy.Min),
    "Mod": (2, 2, functions.Mod),
    "PythonMod": (2, 2, functions.PythonMod),
    "FloorDiv": (2, 2, functions.FloorDiv),
    "CleanDiv": (2, 2, functions.CleanDiv),
    "CeilDiv": (2, 2, functions.CeilDiv),
    "IntTrueDiv": (2, 2, functions.IntTrueDiv),
    "FloatTrueDiv": (2, 2, functions.FloatTrueDiv),
    "ToFloat": (1, 1, functions.ToFloat),
    "TruncToInt": (1, 1, functions.TruncToInt),
    "FloorToInt": (1, 1, functions.FloorToInt),
    "CeilToInt": (1, 1, functions.CeilToInt),
    "RoundToInt": (1, 1, functions.RoundToInt),
    "Equality": (2, 2, sympy.Eq),
    "Unequality": (2, 2, sympy.Ne),
    "LessThan": (2, 2, sympy.Le),
    "GreaterThan": (2, 2, sympy.Ge),
    "StrictLessThan": (2, 2, sympy.Lt),
    "StrictGreaterThan": (2, 2, sympy.Gt),
    "And": (2, 16, sympy.And),
    "Or": (2, 16, sympy.Or),
    "Not": (1, 1, sympy.Not),
}
_POWERS: Final[dict[str, Callable[..., Any]]] = {
    "Pow": sympy.Pow,
    "PowByNatural": functions.PowByNatural,
    "FloatPow": functions.FloatPow,
}
_COMPARED: Final = frozenset({"And", "Or", "Not"})


@dataclass(frozen=True)
class _Part:
    """A part of an expression.

    Attributes:
        value: sympy's.
        bits: at most so many are in any number that sympy could make of it.
        degree: of the polynomial that it is at most.
        parts: how many it is made of, itself included.
    """

    value: Any
    bits: int = 1
    degree: int = 0
    parts: int = 1

    @property
    def is_condition(self) -> bool:
        """Whether it is true or false, not a number."""
        return isinstance(self.value, Boolean) and not isinstance(self.value, sympy.Symbol)


@dataclass
class Sizes:
    """The expressions of one program, each read once.

    Attributes:
        symbols: names of the sizes in them.
    """

    symbols: set[str] = field(default_factory=set)
    _read: dict[str, Any] = field(default_factory=dict)
    _parts: int = 0

    def expression(self, value: Any) -> Any:
        """Return sympy's expression for its text.

        Raises:
            MalformedError: it is too long, or could grow too large.
            UnsafeError: it is anything but arithmetic of sizes.
        """
        if not isinstance(value, str) or len(value) > _LONGEST:
            raise MalformedError(f"a size is {shown(value)}")
        if value not in self._read:
            part = _Parser(value).whole()
            self._parts += part.parts
            self.symbols |= {symbol.name for symbol in part.value.free_symbols}
            if self._parts > _MOST_PARTS_IN_ALL or len(self.symbols) > _MOST_SYMBOLS:
                raise MalformedError(f"its sizes are more than {_MOST_PARTS_IN_ALL:,} terms")
            self._read[value] = part.value
        return self._read[value]


def symbol_name(value: Any) -> str:
    """Return the name of a size.

    Raises:
        UnsafeError: it is none that torch gives to one.
    """
    if not isinstance(value, str) or not _SYMBOL.fullmatch(value):
        raise UnsafeError(f"a size named {shown(value)}")
    return value


class _Parser:
    def __init__(self, source: str) -> None:
        self.source = source
        self.tokens = self._tokens()
        self.next = 0

    def _tokens(self) -> list[tuple[str, str]]:
        tokens, position, source = [], 0, self.source.rstrip()
        while position < len(source):
            match = _TOKEN.match(source, position)
            if match is None:
                raise self._refusal()
            tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()
        return tokens

    def whole(self) -> _Part:
        part = self._expression(_DEEPEST)
        if self.next != len(self.tokens):
            raise self._refusal()
        return part

    def _refusal(self) -> UnsafeError:
        return UnsafeError(f"a size that is no arithmetic of sizes, {printable(self.source, 80)!r}")

    def _growth(self) -> MalformedError:
        return MalformedError(f"a size could grow too large: {printable(self.source, 80)!r}")

    def _take(self, kind: str, value: str | None = None) -> str:
        if not self._sees(kind, value):
            raise self._refusal()
        self.next += 1
        return self.tokens[self.next - 1][1]

    def _sees(self, kind: str, value: str | None = None) -> bool:
        if self.next >= len(self.tokens):
            return False
        found, content = self.tokens[self.next]
        return found == kind and value in {None, content}

    def _integer(self) -> int:
        digits = self._take("integer")
        if len(digits) > len(str(LARGEST)) or abs(int(digits)) > LARGEST:
            raise self._growth()
        return int(digits)

    def _expression(self, deepest: int) -> _Part:
        name = self._take("name")
        if name in _CONSTANTS:
            return _Part(_CONSTANTS[name])
        if not deepest:
            raise self._growth()
        self._take("mark", "(")
        leaf = {"Symbol": self._symbol, "Integer": self._whole_number, "Rational": self._ratio, "Float": self._decimal}
        part = leaf[name]() if name in leaf else self._function(name, deepest - 1)
        self._take("mark", ")")
        if part.bits > _MOST_BITS or part.degree > _HIGHEST_DEGREE or part.parts > _MOST_PARTS:
            raise self._growth()
        return part

    def _symbol(self) -> _Part:
        name = self._take("text")
        if not _SYMBOL.fullmatch(name):
            raise self._refusal()
        assumptions = {}
        while self._sees("mark", ","):
            self._take("mark", ",")
            assumption = self._take("name")
            self._take("mark", "=")
            answer = self._take("name")
            if assumption not in _ASSUMPTIONS or answer not in {"True", "False"}:
                raise self._refusal()
            assumptions[assumption] = answer == "True"
        return _Part(sympy.Symbol(name, **assumptions), degree=1)

    def _whole_number(self) -> _Part:
        value = self._integer()
        return _Part(sympy.Integer(value), bits=value.bit_length() + 1)

    def _ratio(self) -> _Part:
        above = self._integer()
        self._take("mark", ",")
        below = self._integer()
        if below <= 0:
            raise self._refusal()
        return _Part(sympy.Rational(above, below), bits=above.bit_length() + below.bit_length() + 1)

    def _decimal(self) -> _Part:
        digits = self._take("text")
        self._take("mark", ",")
        if not _FLOAT.fullmatch(digits) or self._take("name") != "precision":
            raise self._refusal()
        self._take("mark", "=")
        self._integer()
        return _Part(sympy.Float(digits, precision=53), bits=64)

    def _function(self, name: str, deepest: int) -> _Part:
        parts = [self._expression(deepest)]
        if name in _POWERS:
            self._take("mark", ",")
            return self._power(name, parts[0], self._expression(deepest))
        if name not in _FUNCTIONS:
            raise self._refusal()
        least, most, make = _FUNCTIONS[name]
        while self._sees("mark", ","):
            self._take("mark", ",")
            parts.append(self._expression(deepest))
        if not least <= len(parts) <= most or any(part.is_condition != (name in _COMPARED) for part in parts):
            raise self._refusal()
        bound = self._bound(name, parts)
        if bound.bits > _MOST_BITS or bound.degree > _HIGHEST_DEGREE or bound.parts > _MOST_PARTS:
            raise self._growth()
        return _Part(self._made(make, [part.value for part in parts]), bound.bits, bound.degree, bound.parts)

    def _bound(self, name: str, parts: Sequence[_Part]) -> _Part:
        """Return a part without a value: how large what a function makes of others could be."""
        together = sum if name in {"Mul", "IntTrueDiv", "FloatTrueDiv"} else max
        bits: int = together(part.bits for part in parts)
        degree: int = together(part.degree for part in parts)
        return _Part(None, bits + len(parts), degree, 1 + sum(part.parts for part in parts))

    def _power(self, name: str, base: _Part, exponent: _Part) -> _Part:
        power = exponent.value
        if not (power.is_Number and abs(power) <= _LARGEST_EXPONENT) or base.is_condition or power.is_infinite:
            raise self._growth()
        factor = max(1, abs(int(power)) + 1)
        bits, degree = base.bits * factor, base.degree * factor
        if bits > _MOST_BITS or degree > _HIGHEST_DEGREE:
            raise self._growth()
        value = self._made(_POWERS[name], [base.value, power])
        return _Part(value, bits, degree, base.parts + 2)

    def _made(self, make: Callable[..., Any], values: Sequence[Any]) -> Any:
        try:
            return make(*values)
        except Exception as error:  # a division by zero, and whatever else sympy makes of numbers
            raise self._refusal() from error
