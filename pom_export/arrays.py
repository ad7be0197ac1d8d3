"""Read .npz archives without pickles, checking each array's size before allocating it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from pom_export.archives import Archive, Member, open_archive
from pom_export.errors import InputError, reason_of
from pom_export.files import AnyPath

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_HINT: Final = "Save them with numpy.savez"
_SUFFIX: Final = ".npy"
# The most memory for all arrays: this much, or this multiple of the file's size.
_SMALL: Final = 256 << 20
_MOST_INFLATED: Final = 8
# Booleans, numbers, text, and raw bytes for types that NumPy lacks.
_KINDS: Final = "biufcUSV"


def read_npz(
    path: AnyPath, kind: str, *, only: Collection[str] | None = None, stored: bool = False
) -> dict[str, Array]:
    """Return the arrays of a .npz file by name, in new memory.

    Args:
        path: path of the file.
        kind: what to call the file in messages.
        only: names of the arrays to read, if present; default: all.
        stored: whether arrays must be uncompressed, as written by `numpy.savez`.

    Raises:
        InputError: it is missing, damaged or not a .npz archive, contains Python objects, or would take far more memory
            than its size.
    """
    with open_archive(path, kind, stored_by="numpy.savez" if stored else "") as archive:
        _check_sizes(archive)
        names = {member: member.removesuffix(_SUFFIX) for member in archive.members}
        chosen = {member: name for member, name in names.items() if only is None or name in only}
        return {name: _array(archive, archive.members[member]) for member, name in chosen.items()}


def _check_sizes(archive: Archive) -> None:
    for member in archive.members.values():
        if not member.name.endswith(_SUFFIX):
            raise InputError(f"{archive.path} holds {member.name}, which is not a NumPy array", _HINT)
    inside, room = archive.bytes_inside, max(_SMALL, _MOST_INFLATED * archive.file_bytes)
    if inside > room:
        raise InputError(f"{archive.path} has {archive.file_bytes:,} bytes and would take {inside:,} in memory", _HINT)


def _array(archive: Archive, member: Member) -> Array:
    """Return an array, which must fill its member exactly."""
    import numpy as np

    content = archive.read(member.name, member.size)
    stream = io.BytesIO(content)
    try:
        shape, fortran, dtype = _header(stream)
        count, start = math.prod(shape), stream.tell()
        if dtype.kind not in _KINDS or dtype.fields or dtype.subdtype or not dtype.itemsize:
            raise ValueError(f"its type is {dtype}, and only plain types are supported")
        if min(shape, default=0) < 0 or count * dtype.itemsize != len(content) - start:
            raise ValueError(f"it holds {len(content) - start:,} bytes, not {dtype}{list(shape)}")
        flat = np.frombuffer(content, dtype, count, start).copy()
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    except Exception as error:  # NumPy may raise anything for a damaged header
        raise InputError(f"{archive.path}: array {member.name} is damaged: {reason_of(error)}", _HINT) from error


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return an array's shape, whether it is in Fortran order, and its type."""
    from numpy.lib import format as npy

    readers: dict[tuple[int, int], Callable[..., Any]] = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f"its format is version {version}")
    shape, fortran, dtype = readers[version](stream)
    return shape, fortran, dtype
