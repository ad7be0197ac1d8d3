"""The protocol of streaming backends, implemented for ONNX Runtime and TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from pom_export.runtime.streaming.interface import StatefulModel

Array = npt.NDArray[Any]
# What a backend knows a past by. Nobody else looks into it.
Past = Any


class StreamingBackend(Protocol):
    """Buffers of one stream, and calls that lead from a past to the next.

    Buffers are reused: of all the pasts that were handed out, the latest and the one before it are whole, and a call
    that fails has changed nothing of the latest. Calls come one at a time.

    Attributes:
        most_tokens: that a call can have; None: any number.
    """

    most_tokens: int | None

    def write(self, arrays: Mapping[str, Array], instead_of: Past | None) -> Past:
        """Copy arrays, by their input's name, into buffers that `instead_of` does not need; return that past."""

    def read(self, past: Past) -> dict[str, Array]:
        """Return copies of a past's arrays, by their input's name."""

    def run(self, past: Past, feed: Mapping[str, Array]) -> tuple[Array, Past]:
        """Run a call's inputs, contiguous and of the model's types, after a past.

        Returns:
            The output (batch, tokens, ...), and the past of the next call. The output of one token is read-only, and
            overwritten by the call after the next.

        Raises:
            InputError: the model cannot be run on them, or what runs it has failed.
        """

    def fork(self, past: Past) -> tuple[StreamingBackend, Past]:
        """Return a backend of its own buffers on the same loaded model, and its copy of a past."""

    def nbytes(self, past: Past) -> int:
        """Return the bytes of a past's arrays."""


# Makes a model's backend for so many rows.
BackendFactory: TypeAlias = Callable[[StatefulModel, int], StreamingBackend]


def locked(array: Array) -> Array:
    """Return a view of an array that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
