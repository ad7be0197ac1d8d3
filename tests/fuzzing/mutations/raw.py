"""Spoils bytes regardless of their meaning."""

from __future__ import annotations

import struct
from random import Random

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def spoil(random: Random, content: bytes) -> tuple[bytes, str]:
    """Return a spoilt copy, and what was done."""
    return random.choice((_flip, _flip, _number, _number, _cut, _cut, _splice, _repeat, _erase, _insert))(
        random, content
    )


def _place(random: Random, content: bytes) -> int:
    """Return a position, often near an end, where formats keep much of what matters."""
    ends = min(len(content), 300)
    at = random.choice((random.randrange(ends), len(content) - 1 - random.randrange(ends), random.randrange(10**9)))
    return at % len(content)


def _flip(random: Random, content: bytes) -> tuple[bytes, str]:
    spoilt = bytearray(content)
    places = [_place(random, content) for _ in range(random.choice((1, 1, 2, 8)))]
    for at in places:
        spoilt[at] ^= 1 << random.randrange(8)
    return bytes(spoilt), f"bits flipped at {places}"


def _number(random: Random, content: bytes) -> tuple[bytes, str]:
    at, width, value = _place(random, content), random.choice((1, 2, 4, 8)), random.choice(_NUMBERS)
    packed = struct.pack("<Q", value if width < 8 else value * 0x100000001)[:width]
    return content[:at] + packed + content[at + width :], f"{packed.hex()} at {at}"


def _cut(random: Random, content: bytes) -> tuple[bytes, str]:
    at = _place(random, content)
    return content[: max(1, at)], f"cut at {at}"


def _splice(random: Random, content: bytes) -> tuple[bytes, str]:
    first, second = sorted((_place(random, content), _place(random, content)))
    return content[:first] + content[second:] or b"\0", f"{first} to {second} left out"


def _repeat(random: Random, content: bytes) -> tuple[bytes, str]:
    first, second = sorted((_place(random, content), _place(random, content)))
    times = random.choice((2, 2, 20))
    piece = content[first : min(second, first + 10_000)]
    return content[:first] + piece * times + content[second:] or b"\0", f"{first} to {second} {times} times"


def _erase(random: Random, content: bytes) -> tuple[bytes, str]:
    at, width = _place(random, content), random.choice((1, 8, 64, 512))
    fill = bytes([random.choice((0, 0x20, 0xFF))])
    return content[:at] + fill * width + content[at + width :], f"{width} of {fill.hex()} at {at}"


def _insert(random: Random, content: bytes) -> tuple[bytes, str]:
    at, width = _place(random, content), random.choice((1, 2, 16))
    return content[:at] + random.randbytes(width) + content[at:], f"{width} bytes put in at {at}"
