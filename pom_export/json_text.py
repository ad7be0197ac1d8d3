"""Parse JSON within bounds on size, depth and length of numbers, and reject duplicate names."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, NoReturn

# The most values in configurations, manifests and other files written by hand or by us.
MOST_VALUES: Final = 200_000
_LONGEST_NUMBER: Final = 40
# A string, terminated or not, so that no character is examined twice.
_TEXT: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)


def parse_json(content: bytes | str, most_values: int = MOST_VALUES, *, infinite: bool = False) -> Any:
    """Parse JSON.

    Args:
        content: the text, in UTF-8 if it is bytes; the caller limits its length.
        most_values: the most entries of lists and objects together.
        infinite: whether to accept the numbers NaN, Infinity and -Infinity, as Python writes them.

    Raises:
        ValueError: it is damaged or nested too deeply, has too many values or a duplicate name in an object, or a
            number is infinite, NaN or longer than any that we write.
    """
    text = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    # Counted before any value is created, since a list of two characters takes 64 bytes.
    values = sum(map(_TEXT.sub(b"", text).count, (b",", b"[", b"{", b":")))
    if values > most_values:
        raise ValueError(f"it holds {values:,} values, but at most {most_values:,} are read")
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_once,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=float if infinite else _refused,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("an object in it has a duplicate name")
    return table


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _LONGEST_NUMBER else _refused(digits)


def _number(digits: str) -> float:
    number = float(digits) if len(digits) <= _LONGEST_NUMBER else math.inf
    return number if math.isfinite(number) else _refused(digits)


def _refused(digits: str) -> NoReturn:
    raise ValueError(f"it holds the number {digits[:_LONGEST_NUMBER]}")
