"""What a stream knows of the tokens before: kept, saved, loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.errors import InputError
from pom_export.graph.exported import PAST_LENGTH
from pom_export.runtime.state_files import read_arrays, write_arrays
from pom_export.runtime.state_identity import ModelFiles

_PAST = "past."
_EXTRA = "extra."


@dataclass(frozen=True)
class State:
    """A model's state after some tokens.

    Attributes:
        arrays: by the model's input: `past_state` (batch, L, 2, C) float32, `past_length` (batch) int64, and what
            hybrids keep besides.
        model: whose state it is.
        notes: JSON values that whoever saves it wants back.
        extras: arrays of the same kind.
    """

    arrays: Mapping[str, npt.NDArray[Any]]
    model: ModelFiles
    notes: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """How many tokens of each row it holds, (batch,)."""
        return self.arrays[PAST_LENGTH]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a .npz file, with the model's SHA-256.

        Raises:
            InputError: the file cannot be written, or the model's file has changed since it was loaded.
        """
        arrays = {_PAST + name: array for name, array in self.arrays.items()}
        arrays |= {_EXTRA + name: array for name, array in self.extras.items()}
        write_arrays(path, {"model_sha256": self.model.sha256, "notes": self.notes}, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Read what `save` has written; `StreamingSession.restore` then refuses it for another model.

        Raises:
            InputError: the file is missing, cut off, damaged, or no state.
        """
        header, arrays = read_arrays(path)
        past, extras = (
            {name.removeprefix(kind): array for name, array in arrays.items() if name.startswith(kind)}
            for kind in (_PAST, _EXTRA)
        )
        sha256, notes = header.get("model_sha256"), header.get("notes")
        if not isinstance(sha256, str) or not sha256 or not isinstance(notes, dict) or PAST_LENGTH not in past:
            raise InputError(f"{os.fspath(path)} is no whole state file: its header lacks a part", "Save it again")
        return cls(past, ModelFiles(sha256=sha256), notes, extras)
