"""The protocol of streaming backends, implemented for ONNX Runtime and TensorRT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from pom_export.errors import InputError, kind_of
from pom_export.runtime.providers import Provider
from pom_export.runtime.streaming.interface import StatefulModel

Array = npt.NDArray[Any]
# A backend's handle of a past, which is opaque to everything else.
Past = Any


class StreamingBackend(Protocol):
    """The buffers of a stream, and the calls that lead from one past to the next.

    Buffers are reused: only the latest past and the one before it are valid, and a call that fails leaves the latest
    unchanged. There is only one call at a time.

    Attributes:
        most_tokens: the most tokens in a call; None: no limit.
    """

    most_tokens: int | None

    def write(self, arrays: Mapping[str, Array], instead_of: Past | None) -> Past:
        """Copy arrays, by their inputs' names, into buffers that `instead_of` does not need; return the new past."""

    def read(self, past: Past) -> dict[str, Array]:
        """Return copies of a past's arrays, by their inputs' names."""

    def run(self, past: Past, feed: Mapping[str, Array]) -> tuple[Array, Past]:
        """Run a call on its inputs, contiguous and of the model's types, continuing from a past.

        Returns:
            The output (batch, tokens, ...), and the past of the next call. The output of a single token is read-only,
            and is overwritten by the second call after this one.

        Raises:
            InputError: the model cannot be run on these inputs, or the runtime failed.
        """

    def fork(self, past: Past) -> tuple[StreamingBackend, Past]:
        """Return a backend with its own buffers on the same loaded model, and its copy of a past."""

    def nbytes(self, past: Past) -> int:
        """Return the total size of a past's arrays in bytes."""


# Creates a model's backend for a number of rows; a StreamPool gives it pasts of fewer rows as well.
BackendFactory: TypeAlias = Callable[[StatefulModel, int], StreamingBackend]


def locked(array: Array) -> Array:
    """Return a read-only view of an array."""
    view = array.view()
    view.flags.writeable = False
    return view


def check_backend(
    backend: BackendFactory | None, providers: Sequence[Provider] | None, session_options: Any, *, kernels: bool
) -> None:
    """Raise InputError unless a backend can be called, and is given without options for ONNX Runtime."""
    if backend is not None and not (providers is None and session_options is None and kernels):
        raise InputError(
            "providers, session_options and kernels are for ONNX Runtime", "Leave out either these or backend"
        )
    if backend is not None and not callable(backend):
        raise InputError(f"backend is {kind_of(backend)}", "Give what pom_export.tensorrt_backend(engine) returns")
