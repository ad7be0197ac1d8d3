"""The state of a stream: save and load it, check which model it belongs to, and add it to others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

from pom_export.arrays import read_npz
from pom_export.contract import MAX_LENGTH
from pom_export.errors import InputError, kind_of, reason_of
from pom_export.files import readable_file, sha256_of, staged_output
from pom_export.graph.exported_model import PAST_LENGTH, PAST_STATE
from pom_export.graph.weights_file import check_weights
from pom_export.json_text import parse_json

Array = npt.NDArray[Any]
# Properties that change when a file is written to.
_Stamp = tuple[int, int, int]

# Names in a state file, which is a .npz without pickles.
_PAST: Final = "past."
_EXTRA: Final = "extra."
_HEADER: Final = "header"
_ARRAY: Final = "array."
_FORMAT: Final = "pom-export state 1"
# Types that NumPy lacks. They are stored by name, with their values as integers of the same size.
_FOREIGN: Final = {"bfloat16": np.uint16}


@dataclass(frozen=True)
class State:
    """A model's state after some tokens.

    Attributes:
        arrays: arrays by the model's inputs: `past_state` (batch, L, 2, C) float32, `past_length` (batch) int64, and
            whatever else hybrids keep.
        model: the model that the state belongs to.
        notes: JSON values stored along with the state.
        extras: arrays stored along with the state.
    """

    arrays: Mapping[str, Array]
    model: ModelFiles
    notes: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Array] = field(default_factory=dict)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of tokens seen by each row, (batch,)."""
        return self.arrays[PAST_LENGTH]

    @property
    def nbytes(self) -> int:
        """Total size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a .npz file, with the model's SHA-256.

        Raises:
            InputError: the file cannot be written, or the model's file has changed since it was loaded.
        """
        arrays = {_PAST + name: array for name, array in self.arrays.items()}
        arrays |= {_EXTRA + name: array for name, array in self.extras.items()}
        _write_arrays(path, {"model_sha256": self.model.sha256, "notes": self.notes}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read a state written by `save`; `StreamingSession.restore` refuses it for another model.

        Raises:
            InputError: the file is missing, truncated, damaged, or not a state.
        """
        header, arrays = _read_arrays(path)
        past, extras = (
            {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in (_PAST, _EXTRA)
        )
        sha256, notes = header.get("model_sha256"), header.get("notes")
        if not isinstance(sha256, str) or not sha256 or not isinstance(notes, dict) or PAST_LENGTH not in past:
            raise InputError(
                f"{os.fspath(path)} is not a complete state file: its header lacks a part", "Save it again"
            )
        return cls(past, ModelFiles(sha256=sha256), notes, extras)


class ModelFiles:
    """A model's files, or only their hash, which is computed once, on first use.

    Args:
        files: the ONNX file, then the files of its external weights.
        sha256: the hash, if known.
    """

    def __init__(self, files: Sequence[Path] = (), sha256: str = "") -> None:
        self._files = tuple(files)
        self._stamps = [_stamp(file) for file in files]
        self._sha256 = sha256

    def __reduce__(self) -> tuple[type[ModelFiles], tuple[tuple[()], str]]:
        # Where a pickle is loaded, the files may be different or missing; only the hash remains valid.
        return type(self), ((), self.sha256)

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the file; with external weights, the hash of all files' hashes.

        Raises:
            InputError: a file has changed since the model was loaded, or weights do not match the hash in their name.
        """
        if not self._sha256:
            hashes = [sha256_of(file) for file in self._files]
            for file, stamp in zip(self._files, self._stamps, strict=True):
                if _stamp(file) != stamp:
                    raise InputError(f"{file} has changed since it was loaded", "Load it again")
            for file, sha256 in zip(self._files, hashes, strict=True):
                check_weights(file, sha256)
            self._sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return self._sha256

    def check_same(self, other: ModelFiles) -> None:
        """Raise InputError unless both are the same model."""
        if self is not other and self.sha256 != other.sha256:
            raise InputError(
                f"the state belongs to another model (sha256 {self.sha256[:12]}), not to this one "
                f"({other.sha256[:12]})",
                "A state can only be used with the file that it came from",
            )


def _stamp(file: Path) -> _Stamp:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _write_arrays(path: str | os.PathLike[str], header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Write arrays by name and a header of JSON values; the file appears complete or not at all.

    Raises:
        InputError: it cannot be written.
    """
    tensors = {name: {"dtype": array.dtype.name, "shape": array.shape} for name, array in arrays.items()}
    text = json.dumps({"format": _FORMAT, "tensors": tensors, **header})
    plain = {_ARRAY + name: array.view(_FOREIGN.get(array.dtype.name, array.dtype)) for name, array in arrays.items()}
    # Given a path instead of an open file, NumPy would add a suffix.
    with staged_output(path) as staged, staged.open("wb") as file:
        np.savez(file, **{_HEADER: np.frombuffer(text.encode(), np.uint8)}, **plain)  # type: ignore[arg-type]


def _read_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the header and the arrays of a file written by `_write_arrays`.

    Raises:
        InputError: it is missing, truncated, damaged, or not such a file.
    """
    readable_file(path, "state")
    try:
        arrays = read_npz(path, "archive", stored=True)
    except InputError as error:
        raise InputError(f"{path} is not a complete state file: {error.what}", "Save it again") from error
    try:
        header = parse_json(arrays.pop(_HEADER).tobytes())
        if header["format"] != _FORMAT:
            raise InputError(f"state {path} is of format {header['format']!r}", f"This version reads {_FORMAT!r}")
        tensors = header["tensors"].items()
        return header, {name: _array(arrays[_ARRAY + name], **described) for name, described in tensors}
    except InputError:
        raise
    except Exception as error:  # a damaged header may fail in any way
        raise InputError(f"{path} is not a complete state file: {reason_of(error)}", "Save it again") from error


def _array(plain: Array, dtype: str, shape: list[int]) -> Array:
    if dtype in _FOREIGN:
        import ml_dtypes

        plain = plain.view(getattr(ml_dtypes, dtype))
    if plain.dtype.name != dtype or list(plain.shape) != shape:
        raise ValueError(f"an array is {plain.dtype.name}{list(plain.shape)}, not {dtype}{shape}")
    return plain


# past_state (batch, L, 2, C) or (batch, 2, C), and past_length (batch).
Pair = tuple[Array, Array]
_StateOrPair = TypeVar("_StateOrPair", State, Pair)
_PAIR_AXIS = -2


def merge_states(*states: _StateOrPair) -> _StateOrPair:
    """Return the state of all tokens of the given states, which must not have any tokens in common.

    Sums of polynomials add up, no matter what computed them: shards of a sequence, or parallel streams. This holds for
    states computed from the inputs that a mixer would get in a single pass, that is, for a single mixer or layer by
    layer. Since a deeper layer's inputs depend on earlier tokens, complete states of a deep causal model that each
    started from nothing do not add up to the state of one pass.

    Args:
        *states: at least one: States, or pairs of `past_state` (batch, L, 2, C) float32 (whose last axis but one has a
            sum and its rounding error) and `past_length` (batch) integers.

    Returns:
        The same kind, with new arrays, and sums with twice the precision of float32.

    Raises:
        InputError: shapes or types differ, the states belong to different models, or they contain something other than
            sums: a cache of keys and values, or a convolution's window; a length is negative, or the sum of lengths
            exceeds an int64.
    """
    if not states:
        raise InputError("merge_states was given no states", "Give at least one")
    given: Sequence[Any] = states
    whole = [state for state in given if isinstance(state, State)]
    if 0 < len(whole) < len(states):
        raise InputError("merge_states was given both States and pairs of arrays", "Give all in one form")
    merged: Any = _merge_whole(whole) if whole else _merge_pairs([_checked(state) for state in given])
    return cast("_StateOrPair", merged)


def _merge_whole(states: list[State]) -> State:
    for state in states:
        state.model.check_same(states[0].model)
        others = sorted(state.arrays.keys() - {PAST_STATE, PAST_LENGTH})
        if others or PAST_STATE not in state.arrays:
            what = f"{others[0]}, which is no sum" if others else f"no {PAST_STATE}"
            raise InputError(f"a state with {what} cannot be merged", "Only mixer states can be added")
    merged = _merge_pairs([_checked((state.arrays[PAST_STATE], state.arrays[PAST_LENGTH])) for state in states])
    return State(dict(zip((PAST_STATE, PAST_LENGTH), merged, strict=True)), states[0].model)


def _checked(pair: Any) -> Pair:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise InputError(
            f"merge_states was given {kind_of(pair)}", f"Give pairs ({PAST_STATE}, {PAST_LENGTH}), or States"
        )
    sums, lengths = np.asarray(pair[0]), np.asarray(pair[1])
    if sums.dtype != np.float32 or sums.ndim < 3 or sums.shape[_PAIR_AXIS] != 2:
        raise InputError(f"{PAST_STATE} is {sums.dtype}{list(sums.shape)}", "It must be float32 (batch, L, 2, C)")
    if lengths.dtype.kind not in "iu" or lengths.shape != sums.shape[:1]:
        raise InputError(f"{PAST_LENGTH} is {lengths.dtype}{list(lengths.shape)}", "It must hold one number per row")
    if (lengths < 0).any():
        raise InputError(f"{PAST_LENGTH} has {lengths.min()}", "It counts tokens: 0 or more")
    return sums, lengths


def _merge_pairs(pairs: list[Pair]) -> Pair:
    shape = pairs[0][0].shape
    for sums, _ in pairs:
        if sums.shape != shape:
            raise InputError(
                f"states have the shapes {list(shape)} and {list(sums.shape)}", "Merge states of one shape"
            )
    # float64 is more precise than a pair of float32.
    total = np.sum([sums.astype(np.float64).sum(_PAIR_AXIS) for sums, _ in pairs], axis=0)
    first = total.astype(np.float32)
    rest = np.where(np.isfinite(first), total - first, 0.0).astype(np.float32)
    # Python's integers do not overflow.
    lengths = np.sum([each.astype(object) for _, each in pairs], axis=0)
    if max(lengths, default=0) > MAX_LENGTH:
        raise InputError(f"states of {max(lengths)} tokens cannot be merged", f"A state holds at most {MAX_LENGTH}")
    return np.stack([first, rest], axis=_PAIR_AXIS), lengths.astype(np.int64)
