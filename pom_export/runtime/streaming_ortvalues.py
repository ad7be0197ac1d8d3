"""ONNX Runtime's values: over an array's memory, out of it, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.runtime.session import import_onnxruntime

Array = npt.NDArray[Any]
# A device by ONNX Runtime's name, and its number.
Device = tuple[str, int]

CPU: Final = "cpu"
# The providers that keep tensors elsewhere, and where.
_DEVICES: Final = {"TensorrtExecutionProvider": "cuda", "CUDAExecutionProvider": "cuda"}
_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16, a type that numpy does not have


def device_of(session: Any) -> Device:
    """Return where a session keeps its tensors."""
    for provider, settings in session.get_provider_options().items():
        if provider in _DEVICES:
            return _DEVICES[provider], int(settings.get("device_id", 0))
    return CPU, 0


def empty(shape: Sequence[int], dtype: np.dtype[Any], device: Device) -> Any:
    """Return an OrtValue on a device, of zeros if that is the CPU."""
    if device[0] == CPU:
        return wrap(np.zeros(shape, dtype))
    kind = _BFLOAT16 if _is_bfloat16(dtype) else dtype
    return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, kind, *device)


def as_known(array: Array) -> Array:
    """Return an array as one of a type that numpy has."""
    return array.view(np.uint16) if _is_bfloat16(array.dtype) else array


def wrap(array: Array) -> Any:
    """Return an OrtValue over a contiguous array's own memory."""
    values = import_onnxruntime().OrtValue
    if _is_bfloat16(array.dtype):
        return values.ortvalue_from_numpy_with_onnx_type(as_known(array), _BFLOAT16)
    return values.ortvalue_from_numpy(array)


def copy(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return an OrtValue's contents, on whatever device, as an array that nobody else holds."""
    if not _is_bfloat16(dtype):
        return np.array(value.numpy())
    copied = np.empty(value.shape(), dtype)
    wrap(copied).update_inplace(value)
    return copied


def locked(array: Array) -> Array:
    """Return a view of an array that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    # A type's name is slow to ask for.
    return dtype.kind == "V" and dtype.name == "bfloat16"
