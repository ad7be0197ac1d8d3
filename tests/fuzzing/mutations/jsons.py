"""Spoils JSON: values by their place, and the text around them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from tests.fuzzing.mutations import raw, values

_DEPTH = 10_000
_DIGITS = 5000


class Verbatim(str):
    """Text that is inserted into JSON as it is, where `json.dumps` would not write it."""

    __slots__ = ()


# Texts that are not JSON values, or far too large ones.
TEXTS = (
    "NaN",
    "-Infinity",
    "1e999",
    "9" * _DIGITS,
    "-" + "9" * _DIGITS,
    "0." + "0" * _DIGITS + "1",
    "[" * _DEPTH + "]" * _DEPTH,
    '{"a":' * _DEPTH + "1" + "}" * _DEPTH,
    "[" * 10**6,
    '"\\ud800"',
    '"\\u0000"',
    '"\\u001b[2J\\nresult  passed"',
    "[" + "0," * 300_000 + "0]",
    "tru",
    "",
    "'a'",
)


def spoil_value(random: Random, value: Any) -> tuple[Any, str]:
    """Return a copy of a JSON value with one part of it changed, and what was done; `written` makes text of it."""
    spoilt = copy.deepcopy(value)
    places = list(_places(spoilt))
    if not places:
        return _other(random, value), "another value"
    parent, key = random.choice(places)
    where = f"{key!r}"[:60]
    action = random.randrange(8)
    if action == 0:
        del parent[key]
        return spoilt, f"{where} left out"
    if action == 1 and isinstance(parent, dict):
        new = values.name(random)
        parent[new] = parent.pop(key)
        return spoilt, f"{where} is named {new[:30]!r}"
    if action == 2 and isinstance(parent, dict):
        parent[values.name(random)] = _other(random, parent[key])
        return spoilt, f"an entry beside {where}"
    if action == 3 and isinstance(parent, list):
        parent[key:key] = [parent[key]] * random.choice((1, 2, 2000))
        return spoilt, f"{where} repeated"
    parent[key] = _other(random, parent[key])
    return spoilt, f"{where} is {str(parent[key])[:40]!r}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in a value, with each of its keys."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield value, key
            yield from _places(inner)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield value, index
            yield from _places(inner)


def _other(random: Random, value: Any) -> Any:
    """Return another value, of the same type about half of the time."""
    if isinstance(value, bool):
        return random.choice((not value, None, "true", 2))
    if isinstance(value, int) and random.random() < 0.7:
        return random.choice((values.integer(random), value + 1, value - 1, -value, 2 * value))
    if isinstance(value, str) and random.random() < 0.6:
        return random.choice((values.name(random), value + "x", value[:-1], value * 2))
    if isinstance(value, list) and value and random.random() < 0.4:
        return random.choice((value[:-1], value + value, value[::-1], []))
    other: tuple[Any, ...] = (None, True, 0, -1, 1.5, "", "x", [], {}, [[]], {"a": {}}, [None] * 3, {"": 0})
    return random.choice((*other, Verbatim(random.choice(TEXTS)), values.name(random), values.integer(random)))


def written(value: Any) -> str:
    """Return a value as JSON with its `Verbatim` texts as they are; a value that contains itself is cut off."""
    if isinstance(value, Verbatim):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value) if not isinstance(value, int) or isinstance(value, bool) else _digits(value)


def _digits(value: int) -> str:
    return hex(value) if abs(value) >= 10**4299 else str(value)


def spoil(random: Random, value: Any) -> tuple[bytes, str]:
    """Return spoilt JSON as bytes, and what was done."""
    action = random.randrange(10)
    if action == 0:
        text = random.choice(TEXTS)
        return text.encode() or b" ", f"all of it is {text[:20]!r}"
    if action == 1:
        return raw.spoil(random, written(value).encode())
    if action == 2:
        text = written(value)
        return random.choice(
            (
                (text.encode("utf-16"), "UTF-16"),
                (b"\xef\xbb\xbf" + text.encode(), "a byte order mark"),
                (text.encode() + b"\xff", "no UTF-8"),
                (text.encode() + b"\n{}", "two values"),
                (b" " * 10**7 + text.encode(), "ten million blanks"),
                (_with_duplicate(random, value).encode(), "a key twice"),
            )
        )
    spoilt, done = value, []
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        spoilt, what = spoil_value(random, spoilt)
        done.append(what)
    return written(spoilt).encode("utf-8", "surrogatepass"), ", ".join(done)


def _with_duplicate(random: Random, value: Any) -> str:
    text = written(value)
    if not isinstance(value, dict) or not value:
        return f'{{"a": 1, "a": {text}}}'
    key = random.choice(list(value))
    return f"{text[:-1]}, {json.dumps(key)}: {written(_other(random, value[key]))}}}"
