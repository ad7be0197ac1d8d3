"""Named arrays with a header in a .npz, without pickles; types that numpy does not have survive."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.arrays import read_npz
from pom_export.errors import InputError, reason_of
from pom_export.files import readable_file, staged_output
from pom_export.json_text import parse_json

Array = npt.NDArray[Any]

_HEADER: Final = "header"
_ARRAY: Final = "array."
_FORMAT: Final = "pom-export state 1"
# What tells them apart is the name, so each is written as the plain integer of its size.
_FOREIGN: Final = {"bfloat16": np.uint16}


def write_arrays(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write arrays by name and a header of JSON values; the file appears whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {name: {"dtype": array.dtype.name, "shape": array.shape} for name, array in arrays.items()}
    text = json.dumps({"format": _FORMAT, "tensors": tensors, **header})
    plain = {_ARRAY + name: array.view(_FOREIGN.get(array.dtype.name, array.dtype)) for name, array in arrays.items()}
    # By the open file: given a path, numpy would add a suffix to it.
    with staged_output(path) as staged, staged.open("wb") as file:
        np.savez(file, **{_HEADER: np.frombuffer(text.encode(), np.uint8)}, **plain)  # type: ignore[arg-type]


def read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the header and the arrays of a file that `write_arrays` has written.

    Raises:
        InputError: it is missing, cut off, damaged, or no such file.
    """
    readable_file(path, "state")
    try:
        arrays = read_npz(path, "archive", stored=True)
    except InputError as error:
        raise InputError(f"{path} is no whole state file: {error.what}", "Save it again") from error
    try:
        header = parse_json(arrays.pop(_HEADER).tobytes())
        if header["format"] != _FORMAT:
            raise InputError(f"state {path} is of format {header['format']!r}", f"This version reads {_FORMAT!r}")
        tensors = header["tensors"].items()
        return header, {name: _array(arrays[_ARRAY + name], **described) for name, described in tensors}
    except InputError:
        raise
    except Exception as error:  # whatever a damaged header leads json to, or lacks
        raise InputError(f"{path} is no whole state file: {reason_of(error)}", "Save it again") from error


def _array(plain: Array, dtype: str, shape: list[int]) -> Array:
    if dtype in _FOREIGN:
        import ml_dtypes

        plain = plain.view(getattr(ml_dtypes, dtype))
    if plain.dtype.name != dtype or list(plain.shape) != shape:
        raise ValueError(f"an array is {plain.dtype.name}{list(plain.shape)}, not {dtype}{shape}")
    return plain
