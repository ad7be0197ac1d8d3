"""Recognise, by its first bytes, what was saved in place of the expected file."""

from __future__ import annotations

from typing import Final

_UNPACK: Final = "Unpack it first"
_DOWNLOAD: Final = "Download the file itself, not the page that shows it"
_HEADS: Final = (
    (b"version https://git-lfs", "a pointer of Git LFS in the file's place", "Fetch the file itself: git lfs pull"),
    (b"<!doctype", "a web page", _DOWNLOAD),
    (b"<html", "a web page", _DOWNLOAD),
    (b"\x1f\x8b", "compressed (gzip)", _UNPACK),
    (b"\xfd7zXZ", "compressed (xz)", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", _UNPACK),
    (b"BZh", "compressed (bzip2)", _UNPACK),
)


def mistaken_for(head: bytes) -> tuple[str, str] | None:
    """Return what a file is, if it is of no kind that we read, and what to do; None if it may be of a known kind.

    Args:
        head: the file's first bytes.
    """
    for start, what, hint in _HEADS:
        if head.lstrip().lower().startswith(start) if start[:1] == b"<" else head.startswith(start):
            return what, hint
    return None
