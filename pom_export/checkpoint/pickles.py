"""Read files written by torch.save, archives and the older format, without running anything in them."""

from __future__ import annotations

import io
import mmap
import struct
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.archives import Archive, open_archive
from pom_export.checkpoint.storages import CALLS, Storage, is_count, storage_dtype
from pom_export.checkpoint.unpickling import Inert, PickleError, unpickle
from pom_export.errors import CheckpointError, InputError, reason_of

SAFE_FORMAT_HINT: Final = "Save the state dict: torch.save(model.state_dict(), path), or safetensors.torch.save_file"
_COPY_HINT: Final = "Copy or save it again"

# The most bytes in the pickled part of a file: names, shapes and whatever a trainer adds. Text takes up to four times
# as much memory.
_MOST_PICKLED: Final = 64 << 20
# Values are mapped in place, which needs this alignment; torch.save provides it.
_ALIGNMENT: Final = 8
_STORAGE: Final = "storage"

# The magic number of the older format, from torch.serialization.
_LEGACY_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL: Final = 1001
_LEGACY_COUNT: Final = struct.Struct("<q")


def read_archive(file: Path) -> Any:
    """Return what torch.save wrote as an archive, with tensors mapped from the disk.

    Objects of classes other than torch's and Python's plain ones become `Inert`.

    Raises:
        CheckpointError: the file is truncated or damaged, is a program, or contains something that torch.save does not
            write.
    """
    try:
        with open_archive(file, "checkpoint") as archive:
            root = _root(file, archive)
            pickled = archive.read(f"{root}/data.pkl", _MOST_PICKLED)
            return unpickle(io.BytesIO(pickled), CALLS, _storages_of(archive, root))
    except CheckpointError:
        raise
    except InputError as error:
        raise CheckpointError(error.what, error.hint) from error
    except Exception as error:  # the parser may raise anything for damaged bytes
        raise CheckpointError(f"{file} is truncated or damaged: {reason_of(error)}", _COPY_HINT) from error


def _root(file: Path, archive: Archive) -> str:
    """Return the folder that contains all members of a checkpoint."""
    names = {name.partition("/")[2] for name in archive.members}
    if "archive_format" in names:
        raise CheckpointError(
            f"{file} is a program of torch.export, not a checkpoint", "Only `pom-export export` accepts it"
        )
    if "constants.pkl" in names:
        raise CheckpointError(f"{file} is a TorchScript program, not a checkpoint", SAFE_FORMAT_HINT)
    roots = {name.partition("/")[0] for name in archive.members}
    if len(roots) != 1 or "data.pkl" not in names:
        raise CheckpointError(f"{file} is not a checkpoint: torch.save did not write this archive", SAFE_FORMAT_HINT)
    (root,) = roots
    archive.check_stored("torch.save")
    if f"{root}/byteorder" in archive.members and archive.read(f"{root}/byteorder", 16) != sys.byteorder.encode():
        raise CheckpointError(f"{file} was saved on a machine with a different byte order", "Save it again on this one")
    return root


def _storages_of(archive: Archive, root: str) -> Callable[[Any], Storage | Inert]:
    """Return a function that turns an archive's identifier into a storage, always the same one."""
    # A private mapping, so that writes to a tensor never reach the file.
    mapped = mmap.mmap(archive.file.fileno(), 0, access=mmap.ACCESS_COPY)
    found: dict[str, Storage] = {}

    def persistent(identifier: Any) -> Storage | Inert:
        kind, key, numel = _identified(identifier)
        try:
            dtype = storage_dtype(kind)
        except PickleError:
            return kind  # its tensors are not read either
        member = archive.members.get(f"{root}/data/{key}")
        if member is None or member.size != numel * dtype.itemsize:
            size = 0 if member is None else member.size
            raise PickleError(f"storage {key} holds {size:,} bytes, not {numel:,} values of {dtype}")
        if key not in found or found[key].dtype != dtype:
            values = partial(_values, mapped, member.offset, member.size, dtype)
            found[key] = Storage(dtype, numel, cache(values))
        return found[key]

    return persistent


def _identified(identifier: Any) -> tuple[Inert, str, int]:
    """Return the class, the key and the number of values in a storage's identifier."""
    match identifier:
        case (str() as what, Inert() as kind, str() as key, str(), numel, *_) if what == _STORAGE and is_count(numel):
            return kind, key, numel
    raise PickleError("it names a storage in a way that torch.save does not")


def _values(content: mmap.mmap | bytearray, offset: int, size: int, dtype: torch.dtype) -> Tensor:
    if not size:
        return torch.empty(0, dtype=dtype)
    if offset % _ALIGNMENT:
        content, offset = bytearray(content[offset : offset + size]), 0
    return torch.frombuffer(content, dtype=dtype, count=size // dtype.itemsize, offset=offset)


def read_legacy(file: Path) -> Any:
    """Return what torch.save wrote before it wrote archives; arguments and errors are those of `read_archive`.

    The file consists of four pickles (a magic number, a protocol, the machine, the content), the keys of storages, and
    their values.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            head = io.BytesIO(stream.read(_MOST_PICKLED))
            _check_legacy(file, head)
            start = head.tell()
            named: dict[str, tuple[torch.dtype | None, int]] = {}
            unpickle(head, {}, lambda identifier: _note(named, identifier))
            keys = unpickle(head, {}, lambda _: None)
            if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
                raise PickleError("its list of storages is not a list of names")
            stream.seek(head.tell())
            storages = {key: _read_storage(stream, size, key, *named[key]) for key in keys}
            head.seek(start)
            return unpickle(
                head, CALLS, lambda identifier: _module_class(identifier) or storages[_identified(identifier)[1]]
            )
    except CheckpointError:
        raise
    except Exception as error:  # the parser may raise anything for damaged bytes
        raise CheckpointError(f"{file} is truncated or damaged: {reason_of(error)}", _COPY_HINT) from error


def _check_legacy(file: Path, head: io.BytesIO) -> None:
    """Raise CheckpointError unless a file begins like torch.save's older format."""
    try:
        first = unpickle(head, {}, lambda _: None)
    except Exception as error:
        raise CheckpointError(f"{file} is a damaged pickle: {reason_of(error)}", _COPY_HINT) from error
    if first != _LEGACY_MAGIC:
        raise CheckpointError(
            f"{file} was not written by torch.save; it holds pickled Python objects, which are never executed",
            SAFE_FORMAT_HINT,
        )
    protocol, machine = (unpickle(head, {}, lambda _: None) for _ in range(2))
    if protocol != _LEGACY_PROTOCOL or not isinstance(machine, dict):
        raise PickleError("its protocol is not torch.save's")
    if machine.get("little_endian") is not (sys.byteorder == "little"):
        raise CheckpointError(f"{file} was saved on a machine with a different byte order", "Save it again on this one")


def _module_class(identifier: Any) -> Inert | None:
    """Return the class of a module that was saved whole, which the older format stores with its source; else None."""
    match identifier:
        case ("module", Inert() as kind, *_):
            return kind
    return None


def _note(named: dict[str, tuple[torch.dtype | None, int]], identifier: Any) -> Inert:
    """Remember the type and the size of a storage, whose values follow after the pickle that refers to it."""
    if (module := _module_class(identifier)) is not None:
        return module
    kind, key, numel = _identified(identifier)
    try:
        dtype = storage_dtype(kind)
    except PickleError:
        dtype = None
    if named.setdefault(key, (dtype, numel)) != (dtype, numel):
        raise PickleError(f"storage {key} is given two types or sizes")
    return kind


def _read_storage(stream: Any, size: int, key: str, dtype: torch.dtype | None, numel: int) -> Storage | Inert:
    if dtype is None:
        raise PickleError(f"storage {key} has a type that is not supported")
    (count,) = _LEGACY_COUNT.unpack(stream.read(_LEGACY_COUNT.size))
    if count != numel or numel * dtype.itemsize > size - stream.tell():
        raise PickleError(f"storage {key} holds {count:,} values, not {numel:,}, or is cut short")
    content = bytearray(stream.read(numel * dtype.itemsize))
    return Storage(dtype, numel, lambda: _values(content, 0, len(content), dtype))
