"""Parse JSON within bounds."""

from __future__ import annotations

import json
import re
from typing import Any, Final, NoReturn

from pom_export.checkpoint.programs.checks import MalformedError, shown
from pom_export.errors import reason_of

# A program of 10,000 nodes has 2.5 million values in 15 MB.
MOST_BYTES: Final = 1 << 26
_MOST_VALUES: Final = 4_000_000
_LONGEST_NUMBER: Final = 40
# A text, closed or not, so that nothing is looked at twice.
_TEXT: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """Return what JSON says.

    Raises:
        MalformedError: it is damaged, holds more values than any program, one entry twice, or no plain number.
    """
    # Counted before any value is made: a list in two letters costs 64 bytes.
    outside = _TEXT.sub(b"", content)
    if (values := sum(map(outside.count, (b",", b"[", b"{", b":")))) > _MOST_VALUES:
        raise MalformedError(f"its description holds {values:,} values, at most {_MOST_VALUES:,} are read")
    del outside
    try:
        return json.loads(
            content.decode(),
            object_pairs_hook=_table,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_refused,
        )
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"its description is damaged: {reason_of(error)}") from error


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise MalformedError("its description has an entry twice")
    return table


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _LONGEST_NUMBER else _refused(digits)


def _float(digits: str) -> float:
    return float(digits) if len(digits) <= _LONGEST_NUMBER else _refused(digits)


def _refused(digits: str) -> NoReturn:
    raise MalformedError(f"its description holds the number {shown(digits)}")
