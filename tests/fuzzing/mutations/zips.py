"""Writes zip archives byte by byte, as no library would, and spoils them."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzzing.cases import Changes
from tests.fuzzing.mutations import raw, values

_LOCAL, _ENTRY, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64, _LOCATOR64 = b"PK\6\6", b"PK\6\7"
_STORED, _DEFLATED = 0, 8
_MIB = 2**20
_ALL32, _ALL16 = 2**32 - 1, 2**16 - 1


@dataclass(frozen=True)
class Member:
    """A member of an archive, and what its two headers declare.

    Attributes:
        name: its name, in bytes.
        data: the bytes in the file, compressed or not.
        size: the uncompressed size that the headers declare.
        method: the compression method.
        crc: the checksum that the headers declare.
        packed: the compressed size that the headers declare; None for the true one.
        flags: the general-purpose bits.
        attributes: the external attributes, with a file mode in the upper half.
        extra: the extra field in the directory.
        local_name: the name in the local header; None for the same name.
        version: the version needed to extract.
        offset: what is added to the position that the directory declares.
    """

    name: bytes
    data: bytes
    size: int
    crc: int
    method: int = _STORED
    packed: int | None = None
    flags: int = 0
    attributes: int = 0
    extra: bytes = b""
    local_name: bytes | None = None
    version: int = 20
    offset: int = 0


@dataclass
class Archive:
    """A whole archive.

    Attributes:
        members: the members in the file.
        entries: the members that the directory lists; None for all.
        prefix: bytes before the archive.
        trailing: bytes after the archive.
        comment: the comment of the end record.
        count: the number of members that the end record declares; None for the true one.
        zip64: whether there is a 64-bit end record too, which Python never writes for small archives.
        gap: bytes between members.
    """

    members: list[Member]
    entries: list[Member] | None = None
    prefix: bytes = b""
    trailing: bytes = b""
    comment: bytes = b""
    count: int | None = None
    zip64: bool = False
    gap: bytes = field(default=b"")


def stored(name: str | bytes, data: bytes) -> Member:
    """Return a valid uncompressed member."""
    encoded = name if isinstance(name, bytes) else name.encode("utf-8", "surrogatepass")
    return Member(encoded, data, len(data), zlib.crc32(data))


def members_of(file: Path) -> list[tuple[str, bytes]]:
    """Return the names and contents of a valid archive."""
    with zipfile.ZipFile(file) as archive:
        return [(name, archive.read(name)) for name in archive.namelist()]


def honest(members: Sequence[tuple[str, bytes]]) -> bytes:
    """Return an archive as zipfile writes it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return stream.getvalue()


def written(archive: Archive) -> bytes:
    """Return the bytes of an archive."""
    body = bytearray(archive.prefix)
    offsets: dict[int, int] = {}
    for member in archive.members:
        offsets.setdefault(id(member), len(body))
        body += _local(member) + member.data + archive.gap
    entries = archive.members if archive.entries is None else archive.entries
    start = len(body)
    body += b"".join(_entry(member, offsets.get(id(member), 0)) for member in entries)
    size, count = len(body) - start, len(entries) if archive.count is None else archive.count
    if archive.zip64:
        at = len(body)
        body += _END64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, size, start)
        body += _LOCATOR64 + struct.pack("<IQI", 0, at, 1)
        size, start, count = _ALL32, _ALL32, _ALL16
    body += _END + struct.pack("<HHHHIIH", 0, 0, *[count & _ALL16] * 2, size, start, len(archive.comment[:_ALL16]))
    return bytes(body + archive.comment[:_ALL16] + archive.trailing)


def _local(member: Member) -> bytes:
    name = member.name if member.local_name is None else member.local_name
    packed = len(member.data) if member.packed is None else member.packed
    return (
        _LOCAL
        + struct.pack("<HHHHH", member.version, member.flags, member.method, 0, 33)
        + struct.pack("<III", member.crc, packed & _ALL32, member.size & _ALL32)
        + struct.pack("<HH", len(name) & _ALL16, 0)
        + name[:_ALL16]
    )


def _entry(member: Member, offset: int) -> bytes:
    packed = len(member.data) if member.packed is None else member.packed
    return (
        _ENTRY
        + struct.pack("<HHHHHH", 3 << 8 | 20, member.version, member.flags, member.method, 0, 33)
        + struct.pack("<III", member.crc, packed & _ALL32, member.size & _ALL32)
        + struct.pack("<HHHHH", len(member.name) & _ALL16, len(member.extra), 0, 0, 0)
        + struct.pack("<II", member.attributes & _ALL32, (offset + member.offset) & _ALL32)
        + member.name[:_ALL16]
        + member.extra
    )


@lru_cache(maxsize=4)
def _zeros(mebibytes: int, fill: bytes) -> tuple[bytes, int]:
    """Return a deflated block of so many MiB of zeros, and its checksum; nothing of that size is ever created."""
    block = fill * _MIB
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(mebibytes):
        crc = zlib.crc32(block, crc)
    return piece * mebibytes, crc


def bomb(name: str, head: bytes, mebibytes: int = 2048, fill: bytes = b"\0", tail: bytes = b"") -> Member:
    """Return a member of a few MiB that inflates to `head`, many MiB of one byte, and `tail`."""
    packed, crc = _zeros(mebibytes, fill)
    if head or tail:
        crc = 0  # whoever checks this has already inflated everything
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH) if head else b""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = start + packed + packer.compress(tail) + packer.flush()
    return Member(name.encode(), data, len(head) + mebibytes * _MIB + len(tail), crc, _DEFLATED)


def _deflated(member: Member) -> Member:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return replace(member, data=packer.compress(member.data) + packer.flush(), method=_DEFLATED)


def spoil(random: Random, members: Sequence[tuple[str, bytes]], changes: Changes) -> bytes:
    """Return an archive of these members, spoilt in one or two ways."""
    archive = Archive([stored(name, data) for name, data in members])
    if random.random() < 0.1:
        archive.members = [_deflated(member) for member in archive.members]
        changes.note("deflated")
    for _ in range(random.choice((1, 1, 2))):
        random.choice(_WAYS)(random, archive, changes)
    content = written(archive)
    if random.random() < 0.1:
        content, what = raw.spoil(random, content)
        changes.note(what)
    return content


def _any(random: Random, archive: Archive) -> int:
    return random.randrange(len(archive.members))


def _duplicate(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    other = random.choice((archive.members[at].data, b"", b"{}", b"\x80\x02}."))
    archive.members.insert(random.choice((0, at + 1)), stored(archive.members[at].name, other))
    changes.note(f"two members {archive.members[at].name[:40]!r}", refuse=True)


def _listed_twice(random: Random, archive: Archive, changes: Changes) -> None:
    archive.entries = [*archive.members, archive.members[_any(random, archive)]]
    changes.note("a member listed twice", refuse=True)


def _unlisted(random: Random, archive: Archive, changes: Changes) -> None:
    archive.entries = [*archive.members]
    del archive.entries[_any(random, archive)]
    changes.note("a member that is not listed")


def _two_directories(random: Random, archive: Archive, changes: Changes) -> None:
    """Hide a second archive where some readers look for one: before this one, after it, or in its comment."""
    other = written(Archive([stored(member.name, b"") for member in archive.members]))
    where = random.choice(("prefix", "trailing", "comment", "gap"))
    setattr(archive, where, other)
    changes.note(f"a second directory, as {where}", refuse=True)


def _garbage(random: Random, archive: Archive, changes: Changes) -> None:
    where = random.choice(("prefix", "trailing", "comment", "gap"))
    setattr(archive, where, random.choice((b"\0", b"garbage", _END, b"\0" * 70_000)))
    changes.note(f"bytes as {where}")


def _bomb(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    member = archive.members[at]
    fill = random.choice((b"\0", b" ", b"["))
    archive.members[at] = bomb(member.name.decode(), random.choice((b"", member.data)), fill=fill)
    changes.note(f"{member.name[:40]!r} inflates to 2 GiB", refuse=True)


def _size(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    which = random.choice(("size", "packed", "both"))
    lie = random.choice((0, 1, 2**31, 2**32 - 1, 2**40, archive.members[at].size + 1))
    member = archive.members[at]
    size, packed = member.size if which == "packed" else lie, None if which == "size" else lie
    archive.members[at] = replace(member, size=size, packed=packed)
    changes.note(f"{which} of a member said to be {lie}")


def _size64(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    sizes = [random.choice((0, 2**40, 2**62, 2**63, 2**64 - 1)) for _ in range(3)]
    extra = struct.pack("<HHQQQ", 1, random.choice((24, 8, 0, 65535)), *sizes)
    archive.members[at] = replace(archive.members[at], size=_ALL32, packed=_ALL32, extra=extra)
    changes.note(f"64-bit sizes {sizes}", refuse=True)


def _headers(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    variants: tuple[dict[str, Any], ...] = (
        {"method": random.choice((1, 9, 12, 14, 93, 99, 65535))},
        {"flags": random.choice((1, 8, 0x20, 0x40, 0x800, 0x2000, 65535))},
        {"version": random.choice((0, 63, 99, 65535))},
        {"crc": 0xDEADBEEF},
        {"offset": random.choice((-1, 1, 30, 2**31, -(2**31)))},
        {"local_name": random.choice((b"", b"other", b"archive/data.pkl", b"n" * 60_000))},
        {"extra": random.randbytes(random.choice((1, 4, 60_000)))},
    )
    change = random.choice(variants)
    archive.members[at] = replace(archive.members[at], **change)
    changes.note(f"of a member {str(change)[:60]}", refuse="offset" in change)


def _link(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    mode = random.choice((stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR))
    archive.members[at] = replace(archive.members[at], attributes=(mode | 0o777) << 16)
    changes.note(f"a member of mode {mode:o}", refuse=mode == stat.S_IFLNK)


def _name(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    old = archive.members[at].name
    new = random.choice(
        (
            values.name(random).encode("utf-8", "surrogatepass")[:_ALL16],
            b"../" + old,
            b"/" + old,
            b"\xff\xfe" + old,
            old.upper(),
            old.replace(b"/", b"\\"),
            b"./" + old,
            old.replace(b"/", b"//"),
        )
    )
    archive.members[at] = replace(archive.members[at], name=new)
    changes.note(f"{old[:40]!r} is named {new[:40]!r}")


def _beside(random: Random, archive: Archive, changes: Changes) -> None:
    root = archive.members[0].name.partition(b"/")[0]
    name = random.choice((values.name(random).encode()[:_ALL16], b"code/__torch__.py", b"constants.pkl", b"x/data.pkl"))
    archive.members.insert(_any(random, archive), stored(root + b"/" + name[:60_000], b"\x80\x02}."))
    changes.note(f"a member {name[:40]!r} too many")


def _many(random: Random, archive: Archive, changes: Changes) -> None:
    count = random.choice((10_000, 65_536))
    archive.members += [stored(f"archive/data/{i}x", b"") for i in range(count)]
    changes.note(f"{count} members too many")


def _fewer(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    changes.note(f"{archive.members[at].name[:40]!r} left out")
    del archive.members[at]


def _empty(random: Random, archive: Archive, changes: Changes) -> None:
    at = _any(random, archive)
    archive.members[at] = stored(archive.members[at].name, b"")
    changes.note(f"{archive.members[at].name[:40]!r} is empty")


def _end(random: Random, archive: Archive, changes: Changes) -> None:
    archive.zip64 = random.random() < 0.5
    archive.count = random.choice((None, 0, 1, 60_000, len(archive.members) + 1))
    changes.note(f"the directory's end: {archive.count} members, 64-bit {archive.zip64}")


_WAYS: tuple[Callable[[Random, Archive, Changes], None], ...] = (
    *(_duplicate, _listed_twice, _unlisted, _two_directories, _garbage, _bomb, _size, _size64, _headers, _headers),
    *(_link, _name, _name, _beside, _many, _fewer, _empty, _end),
)
