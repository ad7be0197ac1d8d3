"""Parse size expressions, as written by sympy, with our own grammar; they are never evaluated as Python.

    expression: NAME | NAME "(" [argument {"," argument}] ")"
    argument:   expression | INTEGER | TEXT | NAME "=" (INTEGER | NAME)

The result is bounded while the text is read, because sympy immediately computes whatever it can.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from pom_export.checkpoint.programs.checks import LARGEST, MalformedError, UnsafeError, shown

_LONGEST: Final = 8192
_DEEPEST: Final = 24
_MOST_PARTS: Final = 256
_MOST_BITS: Final = 256
_HIGHEST_DEGREE: Final = 16
_LARGEST_EXPONENT: Final = 8

_SYMBOL: Final = re.compile(r"s\d{1,6}")
_FLOAT: Final = re.compile(r"-?\d{1,20}(\.\d{1,40})?(e[+-]?\d{1,2})?")
_TOKEN: Final = re.compile(r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<integer>-?\d+)|'(?P<text>[^'\\]*)'|(?P<mark>[(),=]))")
_ASSUMPTIONS: Final = frozenset({"positive", "integer", "nonnegative", "negative", "nonpositive", "real", "zero"})

_MANY: Final = 64
# The smallest and largest number of arguments, by name.
_OF_NUMBERS: Final = {
    **dict.fromkeys(("Add", "Mul", "Max", "Min"), (2, _MANY)),
    **dict.fromkeys(("Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv"), (2, 2)),
    **dict.fromkeys(("Pow", "PowByNatural", "FloatPow"), (2, 2)),
    **dict.fromkeys(("ToFloat", "TruncToInt", "FloorToInt", "CeilToInt", "RoundToInt"), (1, 1)),
}
_COMPARISONS: Final = dict.fromkeys(
    ("Equality", "Unequality", "LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"), (2, 2)
)
_OF_CONDITIONS: Final = {"And": (2, _MANY), "Or": (2, _MANY), "Not": (1, 1)}
_FUNCTIONS: Final = {**_OF_NUMBERS, **_COMPARISONS, **_OF_CONDITIONS}
_TRUTHS: Final = ("true", "false")
_POWERS: Final = ("Pow", "PowByNatural", "FloatPow")
_PRODUCTS: Final = ("Mul", "IntTrueDiv", "FloatTrueDiv")


@dataclass(frozen=True)
class Term:
    """An expression.

    Attributes:
        name: name of the function, or of the kind of leaf.
        arguments: terms; for a leaf, its number or the name of a size.
        assumptions: assumptions about a size.
        bits: bound on the bits of any number computed from it.
        degree: bound on its degree as a polynomial.
        parts: number of terms in it, including itself.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    assumptions: tuple[tuple[str, bool], ...] = ()
    bits: int = 1
    degree: int = 0
    parts: int = 1

    @property
    def is_condition(self) -> bool:
        """Whether it is a condition instead of a number."""
        return self.name in _COMPARISONS or self.name in _OF_CONDITIONS or self.name in _TRUTHS

    @property
    def symbols(self) -> set[str]:
        """Names of the sizes in it."""
        if self.name == "Symbol":
            return {self.arguments[0]}
        return {name for argument in self.arguments if isinstance(argument, Term) for name in argument.symbols}


def parse_size(value: Any) -> Term:
    """Parse the text of an expression.

    Raises:
        MalformedError: it is too long, or could grow too large.
        UnsafeError: it is anything but arithmetic on sizes.
    """
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise MalformedError(f"a size is {shown(value)}")
    return _Parser(value).whole()


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
                self._refuse()
            tokens.append((str(match.lastgroup), match[str(match.lastgroup)]))
            position = match.end()
        return tokens

    def whole(self) -> Term:
        term = self._expression(_DEEPEST)
        if self.next != len(self.tokens):
            self._refuse()
        return term

    def _refuse(self) -> NoReturn:
        raise UnsafeError(f"a size that is not arithmetic on sizes, {shown(self.source)}")

    def _refuse_growth(self) -> NoReturn:
        raise MalformedError(f"a size could grow too large: {shown(self.source)}")

    def _sees(self, kind: str, value: str | None = None) -> bool:
        if self.next >= len(self.tokens):
            return False
        found, content = self.tokens[self.next]
        return found == kind and value in {None, content}

    def _take(self, kind: str, value: str | None = None) -> str:
        if not self._sees(kind, value):
            self._refuse()
        self.next += 1
        return self.tokens[self.next - 1][1]

    def _sees_another(self) -> bool:
        """Consume a comma, and return whether there was one."""
        another = self._sees("mark", ",")
        self.next += another
        return another

    def _integer(self) -> int:
        digits = self._take("integer")
        if len(digits) > len(str(-LARGEST)) or abs(int(digits)) > LARGEST:
            self._refuse_growth()
        return int(digits)

    def _expression(self, deepest: int) -> Term:
        name = self._take("name")
        if name in _TRUTHS:
            return Term(name)
        if not deepest:
            self._refuse_growth()
        self._take("mark", "(")
        leaves = {"Symbol": self._symbol, "Integer": self._whole_number, "Rational": self._ratio, "Float": self._float}
        term = leaves[name]() if name in leaves else self._function(name, deepest - 1)
        self._take("mark", ")")
        if term.bits > _MOST_BITS or term.degree > _HIGHEST_DEGREE or term.parts > _MOST_PARTS:
            self._refuse_growth()
        return term

    def _symbol(self) -> Term:
        name = self._take("text")
        if not _SYMBOL.fullmatch(name):
            self._refuse()
        assumptions = []
        while self._sees_another():
            assumption = self._take("name")
            self._take("mark", "=")
            answer = self._take("name")
            if assumption not in _ASSUMPTIONS or answer not in {"True", "False"}:
                self._refuse()
            assumptions.append((assumption, answer == "True"))
        return Term("Symbol", (name,), tuple(assumptions), degree=1)

    def _whole_number(self) -> Term:
        value = self._integer()
        return Term("Integer", (value,), bits=value.bit_length() + 1)

    def _ratio(self) -> Term:
        above = self._integer()
        self._take("mark", ",")
        below = self._integer()
        if below <= 0:
            self._refuse()
        return Term("Rational", (above, below), bits=above.bit_length() + below.bit_length() + 1)

    def _float(self) -> Term:
        digits = self._take("text")
        self._take("mark", ",")
        if not _FLOAT.fullmatch(digits) or self._take("name") != "precision":
            self._refuse()
        self._take("mark", "=")
        self._integer()
        return Term("Float", (float(digits),), bits=64)

    def _function(self, name: str, deepest: int) -> Term:
        if name not in _FUNCTIONS:
            self._refuse()
        terms = [self._expression(deepest)]
        while self._sees_another():
            terms.append(self._expression(deepest))
        least, most = _FUNCTIONS[name]
        if not least <= len(terms) <= most or any(term.is_condition != (name in _OF_CONDITIONS) for term in terms):
            self._refuse()
        bits, degree = self._power(*terms) if name in _POWERS else self._growth(name, terms)
        return Term(name, tuple(terms), bits=bits, degree=degree, parts=1 + sum(term.parts for term in terms))

    def _growth(self, name: str, terms: Sequence[Term]) -> tuple[int, int]:
        """Return the bits and the degree of a function's result, given its terms."""
        bits, degrees = [term.bits for term in terms], [term.degree for term in terms]
        return (sum(bits), sum(degrees)) if name in _PRODUCTS else (max(bits) + len(terms), max(degrees))

    def _power(self, base: Term, exponent: Term) -> tuple[int, int]:
        """Return the bits and the degree of a power, whose exponent must be a small number."""
        if exponent.name not in {"Integer", "Float", "Rational"} or abs(exponent.arguments[0]) > _LARGEST_EXPONENT:
            self._refuse_growth()
        factor = int(abs(exponent.arguments[0])) + 1
        return base.bits * factor, base.degree * factor
