"""Leaves some cases of a parametrized test to `make test-all`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_cases(cases: Iterable[Any], is_slow: Callable[[str], bool], name: Callable[[Any], str] = str) -> list[Any]:
    """Return cases as parameters of a test or a fixture, those marked slow whose names are slow.

    Args:
        cases: in the order in which they are run.
        is_slow: decides by a case's name.
        name: returns a case's name, which is also the parameter's.
    """
    return [
        pytest.param(case, id=name(case), marks=[pytest.mark.slow] if is_slow(name(case)) else []) for case in cases
    ]
