"""Walk a protocol buffer's bytes field by field, without building objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

VARINT: Final = 0
LENGTH: Final = 2
_WIDTHS: Final = {1: 8, 5: 4}
_CONTINUES: Final = 0x80
_LONGEST_VARINT: Final = 10
_TYPE_BITS: Final = 3
_TYPE_MASK: Final = (1 << _TYPE_BITS) - 1


class WireError(ValueError):
    """The bytes are not a complete message; the text says why."""


class Bytes(Protocol):
    """A source of fields: bytes, or a memory-mapped file."""

    def __getitem__(self, index: int, /) -> int: ...


def fields(data: Bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message from `start` to `end`: number, wire type, and two numbers.

    For a VARINT, these are the value and 0; otherwise the start and the end of the content.

    Raises:
        WireError: a field is cut short, longer than its message, or has an invalid type.
    """
    at = start
    while at < end:
        tag, at = (data[at], at + 1) if data[at] < _CONTINUES else varint(data, at, end)
        number, kind = tag >> _TYPE_BITS, tag & _TYPE_MASK
        if number == 0:
            raise WireError("a field has no number")
        if kind == VARINT:
            value, at = varint(data, at, end)
            yield number, kind, value, 0
            continue
        if kind == LENGTH:
            length, at = varint(data, at, end)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise WireError(f"a field has wire type {kind}")
        if length > end - at:
            raise WireError(f"a field of {length} bytes is in a part with {end - at} bytes left")
        yield number, kind, at, at + length
        at += length


def varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """Return a variable-length integer, and where it ends.

    Raises:
        WireError: it is cut short, or longer than 64 bits.
    """
    if at < end and data[at] < _CONTINUES:  # the most common case
        return data[at], at + 1
    value = 0
    for place in range(_LONGEST_VARINT):
        if at >= end:
            raise WireError("it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & ~_CONTINUES) << (7 * place)
        if byte < _CONTINUES:
            return value, at
    raise WireError("a number is longer than 64 bits")
