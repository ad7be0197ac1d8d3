"""Zip archives are read by one reader, and refused if readers could disagree."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pom_export.archives import open_archive
from pom_export.errors import InputError

END = b"PK\x05\x06"


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members:
            # Of a fixed date: the time of day would put any byte into the headers.
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            archive.writestr(info, content, method)
    return stream.getvalue()


def read_all(file: Path) -> list[bytes]:
    with open_archive(file, "file") as archive:
        return [archive.read(name, 1000) for name in archive.members]


def refusal(folder: Path, content: bytes) -> str:
    file = folder / "a.zip"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_all(file)
    return str(error.value)


def patched(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


def two_directories() -> bytes:
    """An archive that is followed by the members and the directory of another."""
    return zipped(("a", b"harmless")) + zipped(("a", b"hostile!"))


def two_directories_in_one() -> bytes:
    """A directory that its end record places elsewhere than right before itself, which `zipfile` accepts."""
    content = zipped(("a", b"harmless"))
    return b"in front" + content


def lying_about_its_size() -> bytes:
    """A member whose compressed data inflates to more than both headers say."""
    content = zipped(("a", bytes(4000)), method=zipfile.ZIP_DEFLATED)
    directory = content.rindex(b"PK\x01\x02")
    content = patched(content, directory + 24, struct.pack("<I", 10))
    return patched(content, 22, struct.pack("<I", 10))


GOOD = zipped(("a", b"first"), ("b", b"second"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: b"PK\x03\x04", "cut short"),
        (lambda: GOOD[:-1], "does not end with its directory's end record"),
        (lambda: GOOD + b"\n", "does not end with its directory's end record"),
        (lambda: GOOD[:-2] + b"\x03\x00abc", "does not end with its directory's end record"),
        (two_directories, "does not end where it should"),
        (two_directories_in_one, "does not end where it should"),
        (lambda: zipped(("a", b"1"), ("a", b"2")), "holds a twice"),
        (lambda: zipped((link(), b"/etc/passwd")), "is a link"),
        (lambda: zipped(("../a", b"")), "a member is named '../a'"),
        (lambda: zipped(("/a", b"")), "a member is named '/a'"),
        (lambda: zipped(("a\nb", b"")), r"a member is named 'a\nb'"),
        (lambda: zipped(("a", b"1"), method=zipfile.ZIP_BZIP2), "a method that is not supported"),
        (lambda: patched(GOOD, GOOD.index(b"b") , b"c"), "disagree"),
        (lambda: patched(GOOD, 14, b"\x00" * 4), "disagree"),
        (lambda: patched(GOOD, GOOD.index(b"first"), b"FIRST"), "a is damaged"),
        (lambda: patched(GOOD, GOOD.rindex(END) + 8, b"\xff\xff\xff\xff"), "not a complete archive"),
        (lambda: patched(GOOD, GOOD.rindex(END) + 12, b"\xff\xff\xff\x7f"), "not a complete archive"),
        (lying_about_its_size, "is damaged"),
        (lambda: zipped(("a", bytes(1001))), "declares 1,001 bytes, but at most 1,000 are read"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, make: Callable[[], bytes], reason: str) -> None:
    assert reason in refusal(tmp_path, make())


def test_a_hidden_member_is_seen(tmp_path: Path) -> None:
    """Bytes between members that the directory does not list."""
    content = zipped(("a", b"first"), ("b", b"hidden"), ("c", b"third"))
    entries = content[content.index(b"PK\x01\x02") : content.rindex(END)]
    first, second, third = (b"PK\x01\x02" + entry for entry in entries.split(b"PK\x01\x02")[1:])
    end = bytearray(content[content.rindex(END) :])
    end[8:10] = end[10:12] = struct.pack("<H", 2)
    end[12:16] = struct.pack("<I", len(first + third))
    hidden = content[: content.index(b"PK\x01\x02")] + first + third + bytes(end)
    assert "unlisted bytes before c" in refusal(tmp_path, hidden)
    assert second


def test_what_writers_write_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.pt"
    torch.save({"a": torch.arange(3.0)}, file)
    with open_archive(file, "file") as archive:
        member = archive.members["a/data/0"]
        assert archive.read("a/data/0", 12) == torch.arange(3.0).numpy().tobytes()
        assert file.read_bytes()[member.offset : member.offset + member.size] == archive.read("a/data/0", 12)
        assert member.offset % 64 == 0
        assert archive.bytes_inside == sum(member.size for member in archive.members.values())
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # In a stream that cannot seek, sizes are written after the data.
        stream = io.BytesIO()
        stream.seekable = lambda: False  # type: ignore[method-assign]
        with zipfile.ZipFile(stream, "w", method) as written:
            written.writestr("data/a", bytes(100))
            written.writestr("b", b"")
        file.write_bytes(stream.getvalue())
        with open_archive(file, "file") as archive:
            assert archive.read("data/a", 100) == bytes(100)
            assert archive.read("b", 0) == b""


def test_missing_member_and_file(tmp_path: Path) -> None:
    file = tmp_path / "a.zip"
    file.write_bytes(GOOD)
    with open_archive(file, "file") as archive, pytest.raises(InputError, match="lacks c"):
        archive.read("c", 1)
    with pytest.raises(InputError, match="does not exist"), open_archive(tmp_path / "none", "file"):
        pass
