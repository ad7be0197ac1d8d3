"""Checks of parsed JSON: each takes a value and returns a new one with only what was understood."""

from __future__ import annotations

import keyword
import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Final

from pom_export.errors import printable

Check = Callable[[Any], Any]

LARGEST: Final = 2**63 - 1
_LONGEST_TEXT: Final = 4096
# What generated code calls, beside Python's keywords: a value of such a name would stand in for it.
_TAKEN: Final = frozenset({"self", "torch", "getattr", "inf", "nan", "pytree", "fx_pytree", "device", "NoneType"})


class MalformedError(Exception):
    """What of a file is not as torch writes it."""


class UnsafeError(Exception):
    """What of a file is more than data: it would have to be run, or to be looked up by name."""


@dataclass(frozen=True)
class Maybe:
    """An entry of a record that older files lack.

    Attributes:
        check: of its value where it is there.
    """

    check: Check


def shown(value: Any) -> str:
    """Return a value for a message."""
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, (list, tuple)) else printable(repr(value), 80)


def record(what: str, **entries: Check | Maybe) -> Check:
    """Return the check of a table with these entries and no others."""

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
    """Return the check of a table with one of these entries."""

    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict) or len(value) != 1:
            raise MalformedError(f"{what} is {shown(value)}")
        ((kind, inner),) = value.items()
        if kind not in kinds:
            raise UnsafeError(f"{what} of the kind {shown(kind)}")
        return {kind: kinds[kind](inner)}

    return check


def list_of(check: Check, most: int = 100_000) -> Check:
    """Return the check of a list of at most so many items."""

    def check_all(value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise MalformedError(f"a list is {shown(value)}" + (f" of {len(value)}" if isinstance(value, list) else ""))
        return [check(item) for item in value]

    return check_all


def table_of(key: Check, check: Check) -> Check:
    """Return the check of a table of any entries."""

    def check_all(value: Any) -> dict[Any, Any]:
        if not isinstance(value, dict):
            raise MalformedError(f"a table is {shown(value)}")
        return {key(name): check(item) for name, item in value.items()}

    return check_all


def nullable(check: Check) -> Check:
    """Return the check of a value that may be missing."""
    return lambda value: None if value is None else check(value)


def dropped(instead: Any) -> Check:
    """Return what puts a value of ours in place of the file's, whatever that is."""
    return lambda _: instead


def one_of(what: str, values: Container[Any]) -> Check:
    """Return the check of a value, or number of an enumeration, from a list."""

    def check(value: Any) -> Any:
        if isinstance(value, (bool, dict, list)) or value not in values:
            raise MalformedError(f"{what} is {shown(value)}")
        return value

    return check


def integer(low: int = -LARGEST - 1, high: int = LARGEST) -> Check:
    """Return the check of a whole number within bounds, both included."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise MalformedError(f"a number is {shown(value)}")
        return value

    return check


def flag(value: Any) -> bool:
    """Return a value that must be true or false."""
    if not isinstance(value, bool):
        raise MalformedError(f"a flag is {shown(value)}")
    return value


def number(value: Any) -> float:
    """Return a float; torch writes those without a JSON number as text."""
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MalformedError(f"a number is {shown(value)}")
    return float(value)


def text(value: Any) -> str:
    """Return text that is only shown or compared."""
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
        raise MalformedError(f"a text is {shown(value)}")
    return value


def name(value: Any) -> str:
    """Return the name of a value: it becomes a name in generated code."""
    if not isinstance(value, str) or not value.isascii() or not value.isidentifier() or len(value) > _LONGEST_TEXT:
        raise UnsafeError(f"a value named {shown(value)}")
    if keyword.iskeyword(value) or value in _TAKEN:
        raise UnsafeError(f"a value named {shown(value)}")
    return value


def path(value: Any) -> str:
    """Return the path of a parameter: it becomes attributes, or texts between quotes, in generated code."""
    parts = value.split(".") if isinstance(value, str) and len(value) <= _LONGEST_TEXT else [""]
    if not all(part and all(c.isalnum() or c in "_-" for c in part) and not part.startswith("__") for part in parts):
        raise UnsafeError(f"a parameter named {shown(value)}")
    return ".".join(parts)
