"""The tokens of the last steps of each stream, written for many streams at once."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_ROW_BYTES: Final = 2048
_MOST: Final = 256


class StepLog:
    """The tokens of the last steps of each row, until they are taken into its stream's history.

    Args:
        tokens: a token of each row, (rows, 1, ...), for their shape and type.
    """

    def __init__(self, tokens: Array) -> None:
        capacity = max(1, min(_MOST, _ROW_BYTES // max(1, tokens[:1].nbytes)))
        self._tokens = np.empty((len(tokens), capacity, *tokens.shape[2:]), tokens.dtype)
        self._counts = np.zeros(len(tokens), np.intp)

    def add(self, rows: Array, tokens: Array) -> Array:
        """Add a token to each of some rows.

        Args:
            rows: (count,), each of them with room for a token.
            tokens: (count, 1, ...).

        Returns:
            Those of the rows that have room for no more: take theirs.
        """
        counts = self._counts[rows]
        self._tokens[rows, counts] = tokens[:, 0]
        self._counts[rows] = counts + 1
        return rows[counts + 1 == self._tokens.shape[1]]

    def take(self, row: int) -> Array:
        """Return a row's tokens (count, ...), and remove them."""
        tokens = self._tokens[row, : self._counts[row]].copy()
        self._counts[row] = 0
        return tokens
