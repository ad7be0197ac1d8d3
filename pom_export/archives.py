"""Read zip archives strictly: one directory, unique members, no gaps, and no more data than declared.

Zip readers disagree about damaged or ambiguous archives, so a check with one proves nothing about another. Here
a single reader reads an archive, from one open file, and refuses anything that no writer of the supported formats
produces.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final

from pom_export.errors import InputError, reason_of
from pom_export.files import AnyPath, readable_file

_HINT: Final = "Copy or save it again"
# Far more than the storages of any checkpoint. Each member takes memory before anything else is known about the file.
_MOST_MEMBERS: Final = 100_000
_DIRECTORY_ENTRY: Final = 46
_LONGEST_NAME: Final = 1024

# APPNOTE.TXT of PKWARE, sections 4.3.7 (local header), 4.3.14 to 4.3.16 (ends of the directory).
_LOCAL: Final = struct.Struct("<4s5HIIIHH")
_END: Final = struct.Struct("<4s4HIIH")
_END_64: Final = struct.Struct("<4sQ2HIIQQQQ")
_LOCATOR_64: Final = struct.Struct("<4sIQI")
_LOCAL_SIGNATURE: Final = b"PK\x03\x04"
_IN_32_BITS: Final = 0xFFFFFFFF

_HAS_DESCRIPTOR: Final = 0x8  # the sizes follow the data
_FLAGS: Final = _HAS_DESCRIPTOR | 0x800 | 0x6  # UTF-8 names; deflate's effort
# Lengths of the record after the data: with or without a signature, with 32-bit or 64-bit sizes.
_DESCRIPTOR_SIZES: Final = (12, 16, 20, 24)


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: its name, with slashes.
        size: its declared size in bytes; reading it returns exactly this many.
        stored: whether it is uncompressed, so that the bytes from `offset` on are its content.
        offset: offset of its first byte in the archive's file.
    """

    name: str
    size: int
    stored: bool
    offset: int


class Archive:
    """An open zip archive whose layout was checked.

    Attributes:
        path: path of the file, for messages.
        file: the open file; whatever is mapped from it is what was checked.
        members: its files by name, in the directory's order.
        file_bytes: size of the file.
    """

    members: Mapping[str, Member]

    def __init__(self, path: AnyPath, file: IO[bytes]) -> None:
        self.path = os.fspath(path)
        self.file = file
        self.file_bytes = os.fstat(file.fileno()).st_size
        count, directory = _read_end(file, self.file_bytes)
        self._zip = zipfile.ZipFile(file)
        if len(self._zip.infolist()) != count:
            raise _LayoutError(
                f"its directory has {len(self._zip.infolist()):,} entries, but its end record says {count:,}"
            )
        self.members = _members(file, self._zip.infolist(), directory)

    @property
    def bytes_inside(self) -> int:
        """The declared size of all members together, in bytes."""
        return sum(member.size for member in self.members.values())

    def check_stored(self, writer: str) -> None:
        """Raise InputError if a member is compressed although the archive's writer never does that."""
        odd = next((member.name for member in self.members.values() if not member.stored), None)
        if odd is not None:
            raise InputError(
                f"{self.path} is not a complete archive: {odd} is compressed, as {writer} never does", _HINT
            )

    def head(self, name: str, count: int) -> bytes:
        """Return the first bytes of a member, whose checksum is not compared.

        Raises:
            InputError: it is damaged.
        """
        try:
            with self._zip.open(name) as stream:
                return stream.read(count)
        except Exception as error:  # zipfile and zlib may raise anything for damaged bytes
            raise InputError(f"{self.path}: {name} is damaged: {reason_of(error)}", _HINT) from error

    def read(self, name: str, most: int) -> bytes:
        """Return a member's bytes.

        Raises:
            InputError: there is no such member, it declares more than `most` bytes, or it is damaged.
        """
        member = self.members.get(name)
        if member is None:
            raise InputError(f"{self.path} lacks {name}", _HINT)
        if member.size > most:
            raise InputError(
                f"{self.path}: {name} declares {member.size:,} bytes, but at most {most:,} are read", _HINT
            )
        try:
            with self._zip.open(name) as stream:
                content = stream.read(member.size)
                # Reading to the end compares the checksum.
                excess = stream.read(1)
        except Exception as error:  # zipfile and zlib may raise anything for damaged bytes
            raise InputError(f"{self.path}: {name} is damaged: {reason_of(error)}", _HINT) from error
        if len(content) != member.size or excess:
            raise InputError(f"{self.path}: {name} has {len(content)} bytes, but declares {member.size}", _HINT)
        return content


@contextmanager
def open_archive(path: AnyPath, kind: str, *, stored_by: str = "") -> Iterator[Archive]:
    """Open a zip archive and check its layout. The caller reads its contents, with limits of its own.

    Args:
        path: path of the file.
        kind: what to call the file in messages.
        stored_by: the writer of such archives, if it never compresses members; empty: they may be compressed.

    Raises:
        InputError: the file cannot be read, is not a zip archive, is truncated, or has a layout that no writer
            produces.
    """
    file = readable_file(path, kind)
    with file.open("rb") as stream:
        try:
            archive = Archive(file, stream)
            if stored_by:
                archive.check_stored(stored_by)
        except InputError:
            raise
        except _LayoutError as error:
            raise InputError(f"{kind} {file} is not a complete archive: {error}", _HINT) from error
        except Exception as error:  # zipfile may raise anything for damaged bytes
            raise InputError(f"{kind} {file} is not a complete archive: {reason_of(error)}", _HINT) from error
        yield archive


class _LayoutError(Exception):
    """What is wrong with an archive's layout."""


def _read_end(file: IO[bytes], size: int) -> tuple[int, int]:
    """Return the number of entries in the directory, and where it begins.

    The directory must end where its end record begins, which must be at the end of the file.
    """
    end = size - _END.size
    signature, _, _, _, count, length, offset, comment = _unpack(file, end, _END)
    if signature != b"PK\x05\x06" or comment:
        raise _LayoutError("it does not end with its directory's end record")
    locator = end - _LOCATOR_64.size
    if locator >= 0 and (found := _unpack(file, locator, _LOCATOR_64))[0] == b"PK\x06\x07":
        end = locator - _END_64.size
        signature, rest, *_, count_64, length_64, offset_64 = _unpack(file, end, _END_64)
        if signature != b"PK\x06\x06" or found[2] != end or rest != _END_64.size - 12:
            raise _LayoutError("its directory has two end records that disagree")
        for short, long, unsaid in (
            (count, count_64, 0xFFFF),
            (length, length_64, _IN_32_BITS),
            (offset, offset_64, _IN_32_BITS),
        ):
            if short not in {long, unsaid}:
                raise _LayoutError("its directory has two end records that disagree")
        count, length, offset = count_64, length_64, offset_64
    if offset + length != end:
        raise _LayoutError("its directory does not end where it should")
    if count > _MOST_MEMBERS or length > count * (_DIRECTORY_ENTRY + 2 * _LONGEST_NAME):
        raise _LayoutError(f"its directory has {count:,} entries in {length:,} bytes")
    return count, offset


def _unpack(file: IO[bytes], offset: int, record: struct.Struct) -> tuple[Any, ...]:
    if offset < 0:
        raise _LayoutError("it is cut short")
    file.seek(offset)
    content = file.read(record.size)
    if len(content) < record.size:
        raise _LayoutError("it is cut short")
    return record.unpack(content)


def _members(file: IO[bytes], entries: list[zipfile.ZipInfo], directory: int) -> dict[str, Member]:
    """Return the members, which must fill the file from its first byte to the directory."""
    members: dict[str, Member] = {}
    position = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        name = entry.filename
        _check_entry(entry)
        if name in members:
            raise _LayoutError(f"it holds {name} twice")
        if entry.header_offset != position:
            raise _LayoutError(f"there are unlisted bytes before {name}")
        offset = _data_offset(file, entry)
        position = _after(file, entry, offset + entry.compress_size, directory)
        members[name] = Member(name, entry.file_size, entry.compress_type == zipfile.ZIP_STORED, offset)
    if position != directory:
        raise _LayoutError("there are unlisted bytes before its directory")
    return {entry.filename: members[entry.filename] for entry in entries}


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = name.split("/")
    if name != entry.orig_filename or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise _LayoutError(f"a member is named {entry.orig_filename!r}")
    if entry.flag_bits & ~_FLAGS:
        raise _LayoutError(f"{name} is encrypted, or stored in an unsupported way")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise _LayoutError(f"{name} is compressed by a method that is not supported")
    if entry.compress_type == zipfile.ZIP_STORED and entry.compress_size != entry.file_size:
        raise _LayoutError(f"{name} has two sizes")
    mode = entry.external_attr >> 16
    if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
        raise _LayoutError(f"{name} is a link, or not a regular file")


def _data_offset(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Return the offset of a member's bytes, after its local header, which must agree with the directory."""
    header = _unpack(file, entry.header_offset, _LOCAL)
    signature, _, flags, method, _, _, checksum, compressed, size, name_length, extra = header
    name = file.read(name_length)
    agrees = (flags, method) == (entry.flag_bits, entry.compress_type)
    if not flags & _HAS_DESCRIPTOR:
        agrees = agrees and checksum == entry.CRC
        agrees = agrees and compressed in {entry.compress_size, _IN_32_BITS} and size in {entry.file_size, _IN_32_BITS}
    encoding = "utf-8" if flags & 0x800 else "cp437"
    if signature != _LOCAL_SIGNATURE or not agrees or name != entry.orig_filename.encode(encoding, "surrogateescape"):
        raise _LayoutError(f"the directory and the header of {entry.filename} disagree")
    return entry.header_offset + _LOCAL.size + name_length + extra


def _after(file: IO[bytes], entry: zipfile.ZipInfo, end: int, directory: int) -> int:
    """Return where the next member begins: after this one's data, and its sizes if they follow the data."""
    if not entry.flag_bits & _HAS_DESCRIPTOR:
        return end
    file.seek(end)
    behind = file.read(max(_DESCRIPTOR_SIZES) + len(_LOCAL_SIGNATURE))
    for size in _DESCRIPTOR_SIZES:
        if end + size == directory or behind[size : size + 4] == _LOCAL_SIGNATURE:
            return end + size
    raise _LayoutError(f"there are unlisted bytes after {entry.filename}")
