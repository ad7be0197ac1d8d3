"""Where sequences come from: a list, an .npz archive, an .npy file, or a folder of such files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pom_export.arrays import npz_layout, open_npy, read_npz
from pom_export.batches.checking import Layout
from pom_export.batches.interface import Array, Interface
from pom_export.errors import InputError, kind_of, printable
from pom_export.files import AnyPath, as_path
from pom_export.graph.dimensions import CONTEXT_TOKENS, TOKENS

NPY: Final = ".npy"
NPZ: Final = ".npz"
LENGTHS: Final = {"lengths": TOKENS, "context_lengths": CONTEXT_TOKENS}
"""Arrays that say how much of each row of a stacked input counts, and of which dimension."""
SEPARATOR: Final = "/"
"""What separates an input's name from the sequence in the names of an archive's arrays."""

_NPZ_HINT: Final = "Name its arrays INPUT (all sequences stacked) or INPUT/SEQUENCE (one array each)"


class Source(ABC):
    """Sequences, in order.

    Attributes:
        path: where they come from; None: from memory.
        keys: what identifies each: its number, its name in an archive, or its file's name.
        lengths: for sequences that are rows of arrays, the given lengths, by their names; None for all others.
    """

    path: Path | None
    keys: Sequence[str]
    lengths: Mapping[str, Array] | None = None

    @property
    def names(self) -> Sequence[str]:
        """The names of the sequences in an archive."""
        return self.keys

    def called(self, index: int) -> str:
        """Return what to call a sequence in messages."""
        return f"sequence {self.keys[index]}"

    def layout(self, index: int) -> Layout:
        """Return the shapes and types of a sequence's arrays."""
        return tuple((name, array.shape, array.dtype) for name, array in self.arrays(index).items())

    @abstractmethod
    def arrays(self, index: int) -> Mapping[str, Array]:
        """Return a sequence's arrays by input."""


class Listed(Source):
    """Sequences in memory.

    Args:
        sequences: the arrays of each, by input.
        keys: what identifies each.
        path: the file that they were read from.
    """

    lengths: Mapping[str, Array] | None = None

    def __init__(self, sequences: Sequence[Mapping[str, Array]], keys: Sequence[str], path: Path | None = None) -> None:
        self.path = path
        self.keys = keys
        self._sequences = sequences

    def arrays(self, index: int) -> Mapping[str, Array]:  # noqa: D102 (the class above says it)
        return self._sequences[index]


class Stacked(Source):
    """Sequences that are the rows of arrays, each array like an input of the file.

    Args:
        arrays: arrays by input.
        interface: the file's inputs.
        path: the file that they were read from.
    """

    def __init__(self, arrays: Mapping[str, Array], interface: Interface, path: Path) -> None:
        self.path = path
        given = {name: array for name, array in arrays.items() if name in LENGTHS and name not in interface.inputs}
        self._arrays = {name: array for name, array in arrays.items() if name not in given}
        self._shared = {
            name for name, array in self._arrays.items()
            if (spec := interface.inputs.get(name)) and interface.batch_axis(spec) is None
            and array.ndim == len(spec.axes)
        }  # fmt: skip
        self._axes = {name: interface.axes(spec) for name, spec in interface.inputs.items()}
        counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items() if name not in self._shared}
        if len(set(counts.values())) != 1:
            shown = ", ".join(f"{count} in {printable(name)}" for name, count in counts.items()) or "none"
            raise InputError(f"{path} has different numbers of sequences: {shown}", _NPZ_HINT)
        if not any(counts.values()):
            shown = ", ".join(f"{printable(name)} has the shape {list(arrays[name].shape)}" for name in counts)
            raise InputError(f"{path} holds no sequences: {shown}", _NPZ_HINT)
        self.keys = [str(index) for index in range(next(iter(counts.values())))]
        self.lengths = given
        for name, array in given.items():
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise InputError(f"{path}: {name} is {array.dtype}{list(array.shape)}", "Give one whole number per row")

    def arrays(self, index: int) -> Mapping[str, Array]:  # noqa: D102
        return {
            name: array if name in self._shared else self._cut(name, array[index], index)
            for name, array in self._arrays.items()
        }

    def _cut(self, name: str, array: Array, index: int) -> Array:
        axes = self._axes.get(name, ())
        if not self.lengths or array.ndim != len(axes):
            return array
        window: list[slice] = [slice(None)] * array.ndim
        for given, dimension in LENGTHS.items():
            for axis in (axis for axis, each in enumerate(axes) if each == dimension and given in self.lengths):
                length = int(self.lengths[given][index])
                if not 0 <= length <= array.shape[axis]:
                    what = f"{self.called(index)} has the length {length}, but {name} has {array.shape[axis]} tokens"
                    raise InputError(f"{self.path}: {what}", f"Correct {given}")
                window[axis] = slice(length)
        return array[tuple(window)]


class Folder(Source):
    """Sequences that are the .npy and .npz files of a folder, in the order of their names; each is read when needed.

    Args:
        path: the folder.
        interface: the file's inputs.
    """

    def __init__(self, path: Path, interface: Interface) -> None:
        self.path = self._folder = path
        self.keys = sorted(file.name for file in path.iterdir() if file.suffix in (NPY, NPZ) and file.is_file())
        self._interface = interface
        if not self.keys:
            raise InputError(f"folder {path} holds no .npy or .npz file", "Save each sequence as one of its files")

    @property
    def names(self) -> Sequence[str]:  # noqa: D102
        return [Path(key).stem for key in self.keys]

    def called(self, index: int) -> str:  # noqa: D102
        return self.keys[index]

    def layout(self, index: int) -> Layout:  # noqa: D102
        file = self._folder / self.keys[index]
        if file.suffix == NPY:
            return super().layout(index)
        return tuple((name, shape, dtype) for name, (shape, dtype) in npz_layout(file, "sequence").items())

    def arrays(self, index: int) -> Mapping[str, Array]:  # noqa: D102
        file = self._folder / self.keys[index]
        if file.suffix == NPY:
            return {only_input(self._interface): open_npy(file, "sequence")}
        return read_npz(file, "sequence")


def only_input(interface: Interface) -> str:
    """Return the one input that a sequence must have.

    Raises:
        InputError: there are several.
    """
    needed = [name for name in interface.inputs if name not in interface.defaults]
    if len(needed) != 1:
        raise InputError(
            f"{interface.name} takes {', '.join(interface.inputs)}, and an array alone does not say which it is",
            "Give arrays by name: a mapping, or an .npz file",
        )
    return needed[0]


def from_memory(sequences: Any, interface: Interface) -> Listed:
    """Return sequences given as a list of arrays, or of mappings of arrays by input.

    Raises:
        InputError: they are something else.
    """
    if isinstance(sequences, (Mapping, str, bytes)) or not hasattr(sequences, "__iter__"):
        raise InputError(f"the sequences are {kind_of(sequences)}", "Give a list of arrays, or of mappings by input")
    found: list[Mapping[str, Array]] = []
    only = ""
    for index, given in enumerate(sequences):
        only = only or ("" if isinstance(given, Mapping) else only_input(interface))
        arrays = given if isinstance(given, Mapping) else {only: given}
        try:
            found.append({name: np.asarray(array) for name, array in arrays.items()})
        except ValueError as error:  # lists of unequal lengths
            raise InputError(f"sequence {index} is not an array: {error}", "Give NumPy arrays") from error
    return Listed(found, [str(index) for index in range(len(found))])


def read_source(path: AnyPath, interface: Interface) -> Source:
    """Return the sequences in an .npz archive, an .npy file, or a folder of such files.

    Raises:
        InputError: it is something else, holds none, or is damaged.
    """
    file = as_path(path, "input")
    if file.is_dir():
        return Folder(file, interface)
    if file.suffix == NPY:
        array, name = open_npy(file, "input"), only_input(interface)
        spec = interface.inputs[name]
        if array.ndim == len(interface.axes(spec)):
            return Listed([{name: array}], ["0"], file)
        return Stacked({name: array}, interface, file)
    if file.suffix != NPZ and file.exists():
        raise InputError(f"input {file} is no .npz or .npy file", "Save arrays with numpy.savez, or name a folder")
    return _from_npz(file, interface)


def _from_npz(file: Path, interface: Interface) -> Source:
    arrays = read_npz(file, "input")
    separate = [SEPARATOR in name for name in arrays]
    if not any(separate):
        if not arrays:
            raise InputError(f"input {file} holds no arrays", _NPZ_HINT)
        return Stacked(arrays, interface, file)
    if not all(separate):
        raise InputError(
            f"input {file} has both stacked and separate arrays: {printable(str([*arrays][:4]))}", _NPZ_HINT
        )
    sequences: dict[str, dict[str, Array]] = {}
    for whole, array in arrays.items():
        name, _, key = whole.rpartition(SEPARATOR)
        sequences.setdefault(key, {})[name] = array
    return Listed(list(sequences.values()), list(sequences), file)
