"""Read what a tensor of an ONNX file declares, and check that its data has that size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from pom_export.graph.wire import LENGTH, VARINT, Bytes, WireError, fields, varint

_DIMS, _TYPE, _STRINGS, _RAW, _EXTERNAL, _LOCATION = 1, 2, 6, 9, 13, 14
_SEGMENT: Final = 3
# Fields of typed data, and the least number of bytes per value in each.
_TYPED: Final = {4: 4, 5: 1, 7: 1, 10: 8, 11: 1}
# Bits per element, by ONNX's number for the type.
_STRING: Final = 8
_BITS: Final = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
_MOST_DIMS: Final = 64
_SIGN: Final = 1 << 63
_LONGEST_TEXT: Final = 4096


@dataclass(frozen=True)
class External:
    """Tensor data stored in another file.

    Attributes:
        location: name of the file, as given by the tensor.
        offset: where the data starts, in bytes.
        length: number of bytes.
    """

    location: str
    offset: int
    length: int


def read_tensor(data: Bytes, start: int, end: int, count: Callable[[], None]) -> tuple[External | None, int]:
    """Check a tensor's message, and return the location of external data and the number of bytes of text.

    Args:
        data: the file's bytes.
        start: where the message starts.
        end: where it ends.
        count: called once per field.

    Raises:
        WireError: its type is unknown, a dimension is negative, or its data does not have the size that follows from
            its shape.
    """
    dims: list[int] = []
    entries: list[tuple[int, int]] = []
    numbers: dict[int, int] = {}
    held: dict[int, int] = {}
    text = 0
    for number, wire, first, last in fields(data, start, end):
        count()
        if number == _DIMS:
            dims += [first] if wire == VARINT else _packed(data, first, last)
            if len(dims) > _MOST_DIMS:
                raise WireError(f"a tensor has more than {_MOST_DIMS} dimensions")
        elif number in (_TYPE, _LOCATION, _RAW) and number in {*numbers, *held}:
            raise WireError(f"a tensor has field {number} twice")
        elif number == _SEGMENT:
            raise WireError("a tensor is in segments, which are not supported")
        elif wire == VARINT and number in (_TYPE, _LOCATION):
            numbers[number] = first
        elif number == _EXTERNAL:
            entries.append((first, last))
        elif number == _STRINGS:
            held[number] = held.get(number, 0) + 1
            text += last - first
        elif number == _RAW or number in _TYPED:
            width = _TYPED.get(number, 1)
            held[number] = held.get(number, 0) + ((last - first) // width if wire == LENGTH else 1)
        elif wire == LENGTH:
            text += last - first
    external = bool(numbers.get(_LOCATION, 0))
    size = _declared(dims, numbers.get(_TYPE, 0), held, external)
    return (_external(data, entries, size) if external else None), text


def _packed(data: Bytes, at: int, end: int) -> Iterator[int]:
    for _ in range(_MOST_DIMS + 1):
        if at >= end:
            return
        value, at = varint(data, at, end)
        yield value


def _declared(dims: list[int], kind: int, held: dict[int, int], external: bool) -> int:
    """Return the size of a tensor's data in bytes, after comparing it with the data that is there."""
    if any(size >= _SIGN for size in dims):
        raise WireError("a tensor has a negative size")
    elements = math.prod(dims)
    shape = f"a tensor of {'x'.join(map(str, dims)) or '1'}"
    if kind == _STRING:
        if external or held.get(_STRINGS, 0) != elements:
            raise WireError(f"{shape} texts holds {held.get(_STRINGS, 0)}")
        return 0
    if kind not in _BITS:
        raise WireError(f"a tensor has the unknown element type {kind}")
    size = -(-elements * _BITS[kind] // 8)
    if external:
        return size
    if _RAW in held:
        if held[_RAW] != size:
            raise WireError(f"{shape} elements of {_BITS[kind]} bits holds {held[_RAW]} bytes, not {size}")
    elif elements > max((n for number, n in held.items() if number in _TYPED), default=0) * (8 // min(_BITS[kind], 8)):
        raise WireError(f"{shape} elements holds fewer")
    return size


def _external(data: Bytes, entries: list[tuple[int, int]], size: int) -> External:
    """Return the declared location of a tensor's data."""
    declared: dict[str, str] = {}
    for start, end in entries:
        pair = {number: _text(data, first, last) for number, wire, first, last in fields(data, start, end)}
        key = pair.get(1, "")
        if key in declared:
            raise WireError(f"external data gives its {key!r} twice")
        declared[key] = pair.get(2, "")
    length = _number(declared, "length", size)
    if length != size:
        raise WireError(f"external data of {length} bytes is declared for a tensor of {size}")
    return External(declared.get("location", ""), _number(declared, "offset", 0), size)


def _number(declared: dict[str, str], key: str, default: int) -> int:
    text = declared.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < len(str(_SIGN))):
        raise WireError(f"external data has the {key} {text[:80]!r}")
    return int(text)


def _text(data: Bytes, start: int, end: int) -> str:
    if end - start > _LONGEST_TEXT:
        raise WireError(f"external data is described by a text of {end - start} bytes")
    try:
        return bytes(data[at] for at in range(start, end)).decode()
    except UnicodeDecodeError as error:
        raise WireError("external data is described by text that is not UTF-8") from error
