"""Writes arrays as .npy files with headers that numpy never writes, and archives of them."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.fuzzing.cases import CALL, Changes
from tests.fuzzing.mutations import raw, values, zips

Array = npt.NDArray[Any]

_MAGIC = b"\x93NUMPY"
_TYPES = (
    *(
        "<f4",
        ">f4",
        "<f8",
        "<f2",
        "<i8",
        "<i4",
        ">i8",
        "|u1",
        "|b1",
        "<c8",
        "|O",
        "|V4",
        "|V2",
        "|S4",
        "<U4",
        "<M8[ns]",
    ),
    *(
        "<U1000000000",
        "|S2147483647",
        "|V2147483647",
        "|S0",
        "<U0",
        "f",
        "float128",
        "<f16",
        "<f3",
        "",
        "x",
        "O",
        "8f8",
    ),
    *("(1000000000,)<f4", "(0,)<f4", "<f4,<f4", "V", "object", "\n", "|O8", "<m8[1000000Y]"),
)
# Headers that are not a dict with the three entries.
_HEADERS = (
    "{}",
    "[]",
    "",
    CALL,
    "(" * 200 + ")" * 200,
    "(" * 9000 + ")" * 9000,
    "-" * 9000 + "1",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}",
    "{'descr': '<f4', 'fortran_order': False}",
    "{'descr': [('a\\nresult  passed', '<f4'), ('b', '|O')], 'fortran_order': False, 'shape': (2,)}",
    "{'descr': [('a', '<f4', (1000000000,))], 'fortran_order': False, 'shape': (0,)}",
    "{'descr': [('a', [('b', [('c', '|O')])])], 'fortran_order': False, 'shape': (1,)}",
    "{'descr': " + "[('a'," * 50 + "'<f4'" + ")]" * 50 + ", 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "9" * 5000 + ",)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': [2]}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1j,)}",
    "{'descr': '<f4', 'fortran_order': 2, 'shape': (2,)}",
    "{'descr': ('<f4', {'a': 1}), 'fortran_order': False, 'shape': (2,)}",
    "{'descr': {'names': ['a'], 'formats': ['<f4'], 'offsets': [99999999]}, 'fortran_order': False, 'shape': (2,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}\n" * 100,
)


def written(array: Array) -> bytes:
    """Return a valid .npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=False)
    return stream.getvalue()


def headed(header: str, data: bytes, version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    """Return an .npy file with this header, padded as NumPy does; `length` may declare a wrong length."""
    encoded = header.encode("utf-8", "surrogatepass")
    wide = version != (1, 0) or len(encoded) > 60_000
    start = len(_MAGIC) + 2 + (4 if wide else 2)
    encoded += b" " * (-(start + len(encoded) + 1) % 64) + b"\n"
    declared = len(encoded) if length is None else length
    packed = struct.pack("<I", declared & (2**32 - 1)) if wide else struct.pack("<H", declared & (2**16 - 1))
    return _MAGIC + bytes(version if not wide or version != (1, 0) else (2, 0)) + packed + encoded + data


def described(kind: str, shape: tuple[int, ...], fortran: bool = False) -> str:
    """Return a header as text."""
    return repr({"descr": kind, "fortran_order": fortran, "shape": shape})


def spoil(random: Random, array: Array, changes: Changes) -> bytes:
    """Return a spoilt .npy file of an array."""
    data = array.tobytes()
    action = random.randrange(10)
    if action == 0:
        content, what = raw.spoil(random, written(array))
        changes.note(what)
        return content
    if action == 1:
        header = random.choice(_HEADERS)
        changes.note(f"header {header[:60]!r}", refuse=True)
        return headed(header, data)
    if action == 2:
        version, length = (
            random.choice(((1, 0), (2, 0), (3, 0), (9, 9), (0, 0))),
            random.choice((None, 0, 10, 65535, 2**32 - 1)),
        )
        changes.note(f"version {version}, header of {length} bytes")
        return headed(described(array.dtype.str, array.shape), data, version, length)
    if action == 3:
        changes.note("values that are no numbers")
        spoilt = bytearray(data or b"\0")
        for _ in range(4):
            at = random.randrange(len(spoilt)) & ~3
            spoilt[at : at + 4] = random.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\1\0\0\0"))
        return headed(described(array.dtype.str, array.shape), bytes(spoilt[: len(data)]))
    kind, shape, fortran = array.dtype.str, array.shape, random.random() < 0.2
    if action < 7:
        shape = values.shape(random)
    if action in {6, 7, 8}:
        kind = random.choice(_TYPES)
    if action == 9:
        data = random.choice((data[:-1], data + b"x", b"", data * 2))
    changes.note(f"{kind!r} {shape} of {len(data)} bytes{', in columns' if fortran else ''}"[:300])
    return headed(described(kind, shape, fortran), data)


def spoil_archive(random: Random, arrays: Mapping[str, Array], changes: Changes) -> bytes:
    """Return a spoilt .npz file of some arrays."""
    members = [(f"{name}.npy", written(array)) for name, array in arrays.items()]
    action = random.randrange(10)
    if action == 0:
        content, what = raw.spoil(random, zips.honest(members))
        changes.note(what)
        return content
    if action < 3:
        return zips.spoil(random, members, changes)
    at = random.randrange(len(members))
    name = list(arrays)[at]
    changes.note(name[:40])
    if action == 3:
        return random.choice(_SHORTCUTS)(random, members, at, changes)
    members[at] = (members[at][0], spoil(random, arrays[name], changes))
    return zips.honest(members)


def _large(random: Random, members: list[tuple[str, bytes]], at: int, changes: Changes) -> bytes:
    """Make an array 2 GiB of zeros, with a header that says so."""
    shape = random.choice(((2**31,), (2, 2**28), (2**31, 1)))
    kind = "|u1" if shape[0] > 2 else "<f4"
    head = headed(described(kind, shape), b"")
    changes.note(f"{kind} {shape}, deflated", refuse=True)
    archive = zips.Archive([zips.stored(name, data) for name, data in members])
    archive.members[at] = zips.bomb(members[at][0], head)
    return zips.written(archive)


def _renamed(random: Random, members: list[tuple[str, bytes]], at: int, changes: Changes) -> bytes:
    new = random.choice((values.name(random)[:60_000], members[at][0].removesuffix(".npy"), f"{members[at][0]}.npy"))
    changes.note(f"is named {new[:40]!r}")
    members[at] = (new.replace("\0", "0") or "x", members[at][1])
    return zips.honest(members)


def _missing(_: Random, members: list[tuple[str, bytes]], at: int, changes: Changes) -> bytes:
    changes.note("is missing")
    del members[at]
    return zips.honest(members)


def _many(random: Random, members: list[tuple[str, bytes]], at: int, changes: Changes) -> bytes:
    count = random.choice((5000, 40_000))
    changes.note(f"{count} more arrays")
    return zips.honest([*members, *((f"{i}/in/{members[at][0]}", b"") for i in range(count))])


_SHORTCUTS: Sequence[Callable[[Random, list[tuple[str, bytes]], int, Changes], bytes]] = (
    _large,
    _renamed,
    _missing,
    _many,
)
