"""Checks of parsed JSON: each takes a value and returns a new one with only what was understood."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

from pom_export.errors import printable
from pom_export.values import is_number

Check = Callable[[Any], Any]

LARGEST: Final = 2**63 - 1
_LONGEST_TEXT: Final = 4096
# Names that generated code uses, in addition to Python's keywords; a value with such a name would shadow them.
_TAKEN: Final = frozenset({"self", "torch", "getattr", "inf", "nan", "pytree", "fx_pytree", "device", "NoneType"})


class MalformedError(Exception):
    """Part of a file is not what torch would write."""


class UnsafeError(Exception):
    """Part of a file is more than data: it would have to be executed, or looked up by name."""


@dataclass(frozen=True)
class Maybe:
    """An entry of a record that older files lack.

    Attributes:
        check: check of its value, if present.
    """

    check: Check


def shown(value: Any) -> str:
    """Return a value for a message."""
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, (list, tuple)) else printable(repr(value), 80)


def record(what: str, **entries: Check | Maybe) -> Check:
    """Return a check for a table with exactly these entries."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise MalformedError(f"{what} is {shown(value)}")
        if unknown := [name for name in value if name not in entries]:
            raise MalformedError(f"{what} has an entry {shown(unknown[0])}, which this version of torch does not write")
        checked = {}
        for name, entry in entries.items():
            if name in value:
                checked[name] = (entry.check if isinstance(entry, Maybe) else entry)(value[name])
            elif not isinstance(entry, Maybe):
                raise MalformedError(f"{what} lacks {name}")
        return checked

    return check


def union(what: str, **kinds: Check) -> Check:
    """Return a check for a table with one of these entries."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) != 1:
            raise MalformedError(f"{what} is {shown(value)}")
        ((kind, inner),) = value.items()
        if kind not in kinds:
            raise UnsafeError(f"{what} of the kind {shown(kind)}")
        return {kind: kinds[kind](inner)}

    return check


def list_of(check: Check, most: int = 100_000) -> Check:
    """Return a check for a list with a limited number of items."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise MalformedError(f"a list is {shown(value)}" + (f" of {len(value)}" if isinstance(value, list) else ""))
        return [check(item) for item in value]

    return check_all


def table_of(key: Check, check: Check) -> Check:
    """Return a check for a table with any entries."""

    def check_all(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise MalformedError(f"a table is {shown(value)}")
        return {key(name): check(item) for name, item in value.items()}

    return check_all


def nullable(check: Check) -> Check:
    """Return a check for a value that may be null."""
    return lambda value: None if value is None else check(value)


def dropped(instead: Any) -> Check:
    """Return a check that replaces any value in the file by one of ours."""
    return lambda _: instead


def one_of(what: str, values: Container[Any]) -> Check:
    """Return a check for a value, or the number of an enumeration, from a list."""

    def check(value: Any) -> Any:
        if isinstance(value, (bool, dict, list)) or value not in values:
            raise MalformedError(f"{what} is {shown(value)}")
        return value

    return check


def integer(low: int = -LARGEST - 1, high: int = LARGEST) -> Check:
    """Return a check for an integer within bounds, both inclusive."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise MalformedError(f"a number is {shown(value)}")
        return value

    return check


def flag(value: Any) -> bool:
    """Check a boolean."""
    if not isinstance(value, bool):
        raise MalformedError(f"a flag is {shown(value)}")
    return value


def number(value: Any) -> float:
    """Check a float; torch writes those that JSON lacks as text."""
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if not is_number(value) or not math.isfinite(value):
        raise MalformedError(f"a number is {shown(value)}")
    return float(value)


def text(value: Any) -> str:
    """Check text that is only displayed or compared."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise MalformedError(f"a text is {shown(value)}")
    return value


def name(value: Any) -> str:
    """Check the name of a value, which becomes a name in generated code."""
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier() or len(value) > _LONGEST_TEXT:
        raise UnsafeError(f"a value named {shown(value)}")
    if keyword.iskeyword(value) or value in _TAKEN:
        raise UnsafeError(f"a value named {shown(value)}")
    return value


def path(value: Any) -> str:
    """Check the path of a parameter, which becomes attributes or quoted text in generated code."""
    parts = value.split(".") if isinstance(value, str) and len(value) <= _LONGEST_TEXT else [""]
    if not all(part and all(c.isalnum() or c in "_-" for c in part) and not part.startswith("__") for part in parts):
        raise UnsafeError(f"a parameter named {shown(value)}")
    return ".".join(parts)
