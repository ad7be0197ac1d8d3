"""Recognise numbers among the values that a caller may pass."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Return whether a value is a real number, NumPy's types included; a bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer, NumPy's types included; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)
