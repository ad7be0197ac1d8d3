"""Read .npz and .npy files without pickles, checking each array's size before allocating it."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Collection
from typing import IO, TYPE_CHECKING, Any, Final

from pom_export.archives import Archive, Member, open_archive
from pom_export.errors import InputError, reason_of
from pom_export.files import AnyPath, readable_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[Any]

_HINT: Final = "Save them with numpy.savez"
_SUFFIX: Final = ".npy"
# The most memory for all arrays: this much, or this multiple of the file's size.
_SMALL: Final = 256 << 20
_MOST_INFLATED: Final = 8
# More than NumPy reads of a header.
_LONGEST_HEADER: Final = 1 << 14
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


def npz_layout(path: AnyPath, kind: str) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return the shape and type of each array of a .npz file, by name, without reading the arrays.

    Raises:
        InputError: as for `read_npz`, as far as headers tell.
    """
    with open_archive(path, kind) as archive:
        _check_sizes(archive)
        found = {}
        for member in archive.members.values():
            stream = io.BytesIO(archive.head(member.name, _LONGEST_HEADER))
            try:
                shape, _, dtype = _header(stream)
                _check_type(dtype)
            except Exception as error:  # NumPy may raise anything for a damaged header
                raise _damaged(f"{archive.path}: array {member.name}", error) from error
            found[member.name.removesuffix(_SUFFIX)] = shape, dtype
        return found


def open_npy(path: AnyPath, kind: str) -> Array:
    """Return the array of a .npy file, mapped from the file: read-only, and read where it is used.

    Args:
        path: path of the file.
        kind: what to call the file in messages.

    Raises:
        InputError: it is missing, damaged or not a .npy file, or contains Python objects.
    """
    import numpy as np

    file = readable_file(path, kind)
    with file.open("rb") as stream:
        try:
            shape, fortran, dtype = _header(stream)
            _check_type(dtype)
            start, size = stream.tell(), os.fstat(stream.fileno()).st_size
            _check_filled(shape, dtype, size - start)
            if not math.prod(shape):  # an empty part of a file cannot be mapped
                return np.zeros(shape, dtype)
            return np.memmap(stream, dtype, "r", start, shape, "F" if fortran else "C")
        except Exception as error:  # NumPy may raise anything for a damaged header
            raise _damaged(f"{kind} {file}", error, "Save it with numpy.save") from error


def _damaged(what: str, error: Exception, hint: str = _HINT) -> InputError:
    return InputError(f"{what} is damaged: {reason_of(error)}", hint)


def _check_type(dtype: np.dtype[Any]) -> None:
    if dtype.kind not in _KINDS or dtype.fields or dtype.subdtype or not dtype.itemsize:
        raise ValueError(f"its type is {dtype}, and only plain types are supported")


def _check_filled(shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    """Raise ValueError unless an array takes exactly `size` bytes."""
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"it holds {size:,} bytes, not {dtype}{list(shape)}")


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
        _check_type(dtype)
        _check_filled(shape, dtype, len(content) - start)
        flat = np.frombuffer(content, dtype, count, start).copy()
        return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)
    except Exception as error:  # NumPy may raise anything for a damaged header
        raise _damaged(f"{archive.path}: array {member.name}", error) from error


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
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
