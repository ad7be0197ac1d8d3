"""Allocate GPU memory and copy to and from it, through the CUDA runtime.

Polygraphy's binding of it writes to stdout, and its log cannot be silenced in several threads at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from pom_export.errors import EngineError, MissingDependencyError

Array = npt.NDArray[Any]
_LIBRARY: Final = "libcudart.so"
_TOOLKIT: Final = Path("/usr/local/cuda/lib64")


class CopyKind(IntEnum):
    """The values of cudaMemcpyKind in use."""

    TO_DEVICE = 1
    TO_HOST = 2
    ON_DEVICE = 3


class CudaRuntime:
    """The few functions of the CUDA runtime that a stream needs; each raises EngineError if CUDA fails.

    Args:
        library: libcudart.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p

    def malloc(self, nbytes: int) -> int:
        """Allocate memory, and return its address."""
        pointer = ctypes.c_void_p()
        self._call(f"allocate {nbytes} bytes", "cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(nbytes))
        return pointer.value or 0

    def free(self, pointer: int) -> None:
        """Free memory from `malloc`, after all work has finished."""
        self._call("free memory", "cudaFree", ctypes.c_void_p(pointer))

    def create_stream(self) -> int:
        """Return a new stream."""
        stream = ctypes.c_void_p()
        self._call("make a stream", "cudaStreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("end a stream", "cudaStreamDestroy", ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait for all enqueued work."""
        self._call("finish its work", "cudaStreamSynchronize", ctypes.c_void_p(stream))

    def copy(self, target: int, source: int, nbytes: int, kind: CopyKind, stream: int) -> None:
        """Enqueue a copy."""
        pointers = ctypes.c_void_p(target), ctypes.c_void_p(source)
        size, number = ctypes.c_size_t(nbytes), ctypes.c_int(kind)
        self._call(f"copy {nbytes} bytes", "cudaMemcpyAsync", *pointers, size, number, ctypes.c_void_p(stream))

    def _call(self, what: str, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            reason = self._library.cudaGetErrorString(status).decode()
            raise EngineError(f"CUDA cannot {what}: {reason} (error {status})", "Check the GPU with nvidia-smi")


@functools.cache
def cuda() -> CudaRuntime:
    """Load the CUDA runtime: the one that the loader finds, or else from an NVIDIA package or the toolkit.

    Raises:
        MissingDependencyError: there is none.
    """
    for place in (_LIBRARY, *_candidates()):
        with contextlib.suppress(OSError):
            return CudaRuntime(ctypes.CDLL(place))
    raise MissingDependencyError(
        f"{_LIBRARY}, the CUDA runtime, was not found", "Install it: pip install 'nvidia-cuda-runtime'"
    )


def _candidates() -> list[str]:
    packages = importlib.util.find_spec("nvidia")
    folders = [Path(root) for root in (packages.submodule_search_locations or [])] if packages else []
    found = [library for folder in folders for library in folder.glob(f"*/lib/{_LIBRARY}*")]
    return [str(library) for library in (*sorted(found, reverse=True), *sorted(_TOOLKIT.glob(f"{_LIBRARY}*")))]


def _release(function: Callable[[int], None], pointer: int) -> None:
    """Release something, ignoring errors: if CUDA has failed before, it fails here too, and that has been reported."""
    with contextlib.suppress(EngineError):
        function(pointer)


class Stream:
    """A CUDA stream: its work runs in order."""

    def __init__(self) -> None:
        self.pointer = cuda().create_stream()
        weakref.finalize(self, _release, cuda().destroy_stream, self.pointer)

    @contextlib.contextmanager
    def finished(self) -> Iterator[None]:
        """Wait for the block's work when the block ends, even if interrupted, so that its memory may be freed."""
        try:
            yield
        finally:
            cuda().synchronize(self.pointer)


class _Allocation:
    """Bytes on the GPU, freed with the object."""

    def __init__(self, nbytes: int) -> None:
        self.pointer = cuda().malloc(nbytes)
        self.nbytes = nbytes
        weakref.finalize(self, _release, cuda().free, self.pointer)


class DeviceBuffer:
    """GPU memory that grows when necessary."""

    def __init__(self) -> None:
        # A tensor without elements needs an address too.
        self._memory: _Allocation | None = _Allocation(1)

    @property
    def pointer(self) -> int:
        """The memory's address, which changes when it grows."""
        assert self._memory is not None, "the last reservation failed"
        return self._memory.pointer

    def reserve(self, nbytes: int, preferred: int = 0) -> None:
        """Make room for at least `nbytes` bytes; the contents are lost if the memory grows.

        Args:
            nbytes: the required size.
            preferred: the size to allocate if possible.
        """
        if self._memory is not None and nbytes <= self._memory.nbytes:
            return
        self._memory = None
        try:
            self._memory = _Allocation(max(nbytes, preferred))
        except EngineError:
            if preferred <= nbytes:
                raise
            self._memory = _Allocation(nbytes)

    def write(self, array: Array, stream: Stream) -> None:
        """Enqueue a copy of a contiguous array to the buffer."""
        self.reserve(array.nbytes)
        self._copy(self.pointer, array.ctypes.data, array.nbytes, CopyKind.TO_DEVICE, stream)

    def write_from(self, other: DeviceBuffer, nbytes: int, stream: Stream) -> None:
        """Enqueue a copy of the beginning of another buffer to this one."""
        self.reserve(nbytes)
        self._copy(self.pointer, other.pointer, nbytes, CopyKind.ON_DEVICE, stream)

    def read(self, array: Array, stream: Stream) -> None:
        """Enqueue a copy of the beginning of the buffer to a contiguous array."""
        self._copy(array.ctypes.data, self.pointer, array.nbytes, CopyKind.TO_HOST, stream)

    @staticmethod
    def _copy(target: int, source: int, nbytes: int, kind: CopyKind, stream: Stream) -> None:
        if nbytes:
            cuda().copy(target, source, nbytes, kind, stream.pointer)
