"""Expressions of sizes: arithmetic is read; anything else, and anything that could grow, is refused."""

from __future__ import annotations

import pytest
import sympy
from torch.utils._sympy.functions import FloorDiv

from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError
from pom_export.checkpoint.programs.sizes import parse_size
from pom_export.checkpoint.programs.symbols import sympy_size

S0, S7 = (f"Symbol('s{number}', positive=True, integer=True)" for number in (0, 7))
s0, s7 = (sympy.Symbol(f"s{number}", positive=True, integer=True) for number in (0, 7))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (S0, s0),
        (f"Add(Mul(Integer(2), {S0}), Integer(-1))", 2 * s0 - 1),
        (f"Pow({S7}, Integer(2))", s7**2),
        (f"Max({S0},{S7})", sympy.Max(s0, s7)),
        (f"Add(FloorDiv(Add({S0}, Integer(-1)), Integer(2)), Integer(1))", FloorDiv(s0 - 1, 2) + 1),
    ],
)
def test_sizes_are_read_as_sympy_writes_them(expression: str, expected: sympy.Expr) -> None:
    assert sympy_size(parse_size(expression)) == expected


@pytest.mark.parametrize("expression", [sympy.Eq(s0, s7), sympy.And(s0 < s7, s0 > 2), sympy.Rational(1, 2) * s0])
def test_other_sizes_are_read(expression: sympy.Expr) -> None:
    assert parse_size(sympy.srepr(expression)).symbols <= {"s0", "s7"}


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        f"exit({S0})",
        "Symbol.mro()",
        "Symbol('x')",
        "Symbol('s0', commutative=False)",
        "9**9**9**9",
        "Mod(9**9**9,7)",
        "Integer(1) Integer(2)",
        "Integer(1",
        "lambda: 0",
        f"Add({S0})",
        f"And({S0}, {S7})",
        f"Add(true, {S0})",
        "Float('nan', precision=53)",
        "Rational(1, 0)",
        "",
        "Integer('1')",
        "Symbol('s0\\n')",
    ],
)
def test_what_is_no_arithmetic_is_refused(expression: str) -> None:
    with pytest.raises(UnsafeError):
        parse_size(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "Pow(Integer(9), Pow(Integer(9), Pow(Integer(9), Integer(9))))",
        "Pow(Integer(9), Integer(1000000))",
        "Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        "Pow(Integer(9), Float('1e99', precision=53))",
        f"Integer({'9' * 4000})",
        "Integer(9223372036854775808)",
        f"Pow(Pow({S0}, Integer(8)), Integer(8))",
        f"Mul({', '.join([S0] * 30)})",
        "Not(" * 30 + "true" + ")" * 30,
        "Add(" * 10000,
        f"Add({', '.join([f'Add({S0}, {S7}, Integer(1))'] * 100)})",
    ],
)
def test_what_could_grow_is_refused_before_it_is_computed(expression: str) -> None:
    with pytest.raises((MalformedError, UnsafeError)):
        parse_size(expression)


def test_a_size_of_an_input_is_small() -> None:
    terms = ", ".join(f"Symbol('s{number}', integer=True)" for number in range(40))
    with pytest.raises(MalformedError, match="41 terms"):
        sympy_size(parse_size(f"Max({terms})"))
    with pytest.raises(MalformedError, match="cannot be computed"):
        sympy_size(parse_size(f"FloorDiv({S0}, Integer(0))"))
