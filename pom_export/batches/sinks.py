"""Where outputs go: a list, an .npz archive, an .npy file, or a folder with a file for each sequence."""

from __future__ import annotations

import io
import math
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np

from pom_export.batches.calling import Outputs, Room
from pom_export.batches.interface import Array, Interface
from pom_export.batches.sources import LENGTHS, NPY, NPZ, SEPARATOR, Source
from pom_export.errors import InputError, printable
from pom_export.files import AnyPath, as_path, check_replaceable, made_folder, staged_output

# Arrays of more bytes are written in parts, and kept on the disk until then if they come in pieces.
_LARGE: Final = 1 << 26
# Archives of the same arrays are equal, byte by byte.
_DATE: Final = (1980, 1, 1, 0, 0, 0)


class Sink(Protocol):
    """Takes the outputs of sequences in any order."""

    def put(self, index: int, outputs: Outputs) -> None:
        """Take the outputs of a sequence."""


class Collected:
    """Outputs in memory.

    Args:
        count: the number of sequences.

    Attributes:
        outputs: the outputs of each, in order.
    """

    def __init__(self, count: int) -> None:
        self.outputs: list[Outputs] = [{} for _ in range(count)]

    def put(self, index: int, outputs: Outputs) -> None:  # noqa: D102 (the protocol says it)
        self.outputs[index] = outputs


@contextmanager
def file_sink(path: AnyPath, source: Source, interface: Interface) -> Iterator[Sink]:
    """Yield a sink that writes to a file or a folder; at the end everything appears in place, or nothing does.

    Args:
        path: an .npz, an .npy, or else a folder.
        source: the sequences, whose names the outputs get.
        interface: the file's outputs.

    Raises:
        InputError: the output cannot be written there, would replace an input, or cannot hold these outputs.
    """
    target = as_path(path, "output")
    is_folder = target.suffix not in (NPY, NPZ) or target.is_dir() or os.fspath(path).endswith(os.sep)
    writer = _folder_sink if is_folder else _npy_sink if target.suffix == NPY else _npz_sink
    with made_folder(target if is_folder else target.parent), writer(target, source, interface) as sink:
        yield sink


def disk_room(folder: Path) -> Room:
    """Return a function that makes arrays, large ones in a folder, as files without names that vanish by themselves."""

    def make(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        size = math.prod(shape) * dtype.itemsize
        if size <= _LARGE:
            return np.empty(shape, dtype)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a crash later
            return np.memmap(file, dtype, "r+", shape=tuple(shape))

    return make


class _Archive:
    """An archive of arrays that is written as they come, and lists them in the order of the sequences."""

    def __init__(self, file: zipfile.ZipFile, keys: Sequence[str]) -> None:
        self._file = file
        self._keys = keys
        self._places: dict[str, tuple[int, int]] = {}

    def put(self, index: int, outputs: Outputs) -> None:
        for place, (name, array) in enumerate(outputs.items()):
            self.write(f"{name}{SEPARATOR}{self._keys[index]}", array, (index, place))

    def write(self, name: str, array: Array, place: tuple[int, int]) -> None:
        member = zipfile.ZipInfo(name + NPY, _DATE)
        self._places[member.filename] = place
        if array.nbytes <= _LARGE:
            self._file.writestr(member, _content(array))  # ten times as fast for a small one
            return
        with self._file.open(member, "w", force_zip64=True) as stream:
            np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

    def sort(self) -> None:
        self._file.filelist.sort(key=lambda member: self._places[member.filename])


def _content(array: Array) -> bytes:
    """Return an array as the bytes of an .npy file."""
    whole = np.asarray(array, order="C")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(whole))
    return header.getvalue() + whole.tobytes()


@contextmanager
def _npz_sink(target: Path, source: Source, interface: Interface) -> Iterator[Sink]:
    with staged_output(target, source.path) as staged, zipfile.ZipFile(staged, "w") as file:
        archive = _Archive(file, source.names)
        _check_distinct(source.names, target)
        if source.lengths is None:
            yield archive
        else:
            rows = _Rows(source, interface)
            yield rows
            given = {name: array for name, array in source.lengths.items() if name in LENGTHS}
            for place, (name, array) in enumerate({**rows.arrays, **given}.items()):
                archive.write(name, array, (0, place))
        archive.sort()


@contextmanager
def _npy_sink(target: Path, source: Source, interface: Interface) -> Iterator[Sink]:
    if len(interface.outputs) != 1:
        raise InputError(
            f"output {target} holds one array, but there are {', '.join(interface.outputs)}", "Name an .npz"
        )
    single = len(source.keys) == 1 and source.lengths is None
    if source.lengths is None and not single:
        raise InputError(f"output {target} holds one array, but the sequences are separate", "Name an .npz or a folder")
    with staged_output(target, source.path) as staged:
        rows = Collected(1) if single else _Rows(source, interface)
        yield rows
        (array,) = rows.outputs[0].values() if isinstance(rows, Collected) else rows.arrays.values()
        with staged.open("wb") as file:
            np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


class _Rows:
    """Outputs of stacked sequences, stacked again, with zeros behind the shorter ones."""

    def __init__(self, source: Source, interface: Interface) -> None:
        self._source = source
        self._outputs = interface.outputs
        self.arrays: dict[str, Array] = {}

    def put(self, index: int, outputs: Outputs) -> None:
        for name, array in outputs.items():
            rows = self.arrays.get(name)
            if rows is None:
                rows = self.arrays[name] = np.zeros((len(self._source.keys), *array.shape), array.dtype)
            if any(size > room for size, room in zip(array.shape, rows.shape[1:], strict=True)):
                larger = map(max, array.shape, rows.shape[1:])
                rows = self.arrays[name] = _grown(rows, (len(rows), *larger))
            window: tuple[Any, ...] = (index, *map(slice, array.shape))
            rows[window] = array


def _grown(rows: Array, shape: tuple[int, ...]) -> Array:
    larger = np.zeros(shape, rows.dtype)
    larger[tuple(map(slice, rows.shape))] = rows
    return larger


class _Files:
    """A file for each sequence."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = names

    def put(self, index: int, outputs: Outputs) -> None:
        with (self._folder / self._names[index]).open("wb") as file:
            _write(file, self._names[index], outputs)


def _write(file: IO[bytes], name: str, outputs: Mapping[str, Array]) -> None:
    if name.endswith(NPY):
        (array,) = outputs.values()
        np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)
        return
    with zipfile.ZipFile(file, "w") as archive:
        writer = _Archive(archive, ())
        for place, (each, array) in enumerate(outputs.items()):
            writer.write(each, array, (0, place))


@contextmanager
def _folder_sink(target: Path, source: Source, interface: Interface) -> Iterator[Sink]:
    single = len(interface.outputs) == 1
    names = [
        key if key.endswith(NPZ) or (key.endswith(NPY) and single) else f"{key.removesuffix(NPY)}{NPZ}"
        for key in source.keys
    ]
    for name in names:
        if Path(name).name != name or name.startswith("."):
            raise InputError(f"the sequence {printable(name)} cannot be the name of a file", "Name an .npz as output")
    _check_distinct(names, target)
    if source.path is not None and source.path.is_dir() and target.exists() and target.samefile(source.path):
        raise InputError(f"output {target} is the input folder", "Choose another folder")
    for name in names:
        check_replaceable(target / name, [source.path])
    with staged_output(target / names[0], source.path) as staged:
        yield _Files(staged.parent, names)


def _check_distinct(names: Sequence[str], target: Path) -> None:
    if len(set(names)) < len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise InputError(f"output {target} would hold {printable(twice)} twice", "Rename one of the inputs")
