"""Memory on the GPU, and copies to and from it, by Polygraphy's binding of the CUDA runtime."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import numpy.typing as npt

from pom_export.errors import EngineError, MissingDependencyError, reason_of
from pom_export.runtime.quiet import quiet_polygraphy

Array = npt.NDArray[Any]


@functools.cache
def cuda() -> Any:
    """Return Polygraphy's wrapper of the CUDA runtime.

    Raises:
        MissingDependencyError: the runtime's library is not here.
    """
    from polygraphy.cuda import wrapper

    try:
        with quiet_polygraphy():
            return wrapper()
    except Exception as error:  # OSError where there is no library, Polygraphy's own otherwise
        raise MissingDependencyError(
            f"the CUDA runtime cannot be loaded: {reason_of(error)}", "pip install nvidia-cuda-runtime"
        ) from error


def _copy(target: int, source: int, nbytes: int, kind: str, stream: Stream) -> None:
    from polygraphy.cuda import MemcpyKind

    if nbytes:
        cuda().memcpy(target, source, nbytes, getattr(MemcpyKind, kind), stream.pointer)


class Stream:
    """A CUDA stream: what is enqueued on it runs in order."""

    def __init__(self) -> None:
        self.pointer: int = cuda().create_stream()
        weakref.finalize(self, cuda().destroy_stream, self.pointer)

    def synchronize(self) -> None:
        """Wait for all that was enqueued."""
        cuda().stream_synchronize(self.pointer)


class _Allocation:
    """Bytes on the GPU, freed with the object."""

    def __init__(self, nbytes: int) -> None:
        try:
            with quiet_polygraphy():
                self.pointer: int = cuda().malloc(nbytes)
        except Exception as error:
            raise EngineError(
                f"cannot allocate {nbytes} bytes on the GPU: {reason_of(error)}", "Use fewer rows or a shorter context"
            ) from error
        self.nbytes = nbytes
        weakref.finalize(self, cuda().free, self.pointer)


class DeviceBuffer:
    """Memory on the GPU that holds what is written to it, and becomes larger where it must."""

    def __init__(self) -> None:
        # A tensor of no elements has an address too.
        self._memory = _Allocation(1)

    @property
    def pointer(self) -> int:
        """Its address, another one after it became larger."""
        return self._memory.pointer

    def reserve(self, nbytes: int) -> None:
        """Make it hold at least so many bytes; what it held is lost where it becomes larger."""
        if nbytes > self._memory.nbytes:
            # What grows by a token a call shall not be allocated at every call.
            self._memory = _Allocation(max(nbytes, 2 * self._memory.nbytes))

    def write(self, array: Array, stream: Stream) -> None:
        """Copy a contiguous array to it."""
        self.reserve(array.nbytes)
        _copy(self.pointer, array.ctypes.data, array.nbytes, "HostToDevice", stream)

    def write_from(self, other: DeviceBuffer, nbytes: int, stream: Stream) -> None:
        """Copy the beginning of another buffer to it."""
        self.reserve(nbytes)
        _copy(self.pointer, other.pointer, nbytes, "DeviceToDevice", stream)

    def read(self, array: Array, stream: Stream) -> None:
        """Copy its beginning to a contiguous array, which is filled once the stream was synchronized."""
        _copy(array.ctypes.data, self.pointer, array.nbytes, "DeviceToHost", stream)
