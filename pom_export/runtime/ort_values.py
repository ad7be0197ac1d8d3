"""Tensors for ONNX Runtime's IO binding: on any device, in any type, without a copy where possible."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.runtime.session import import_onnxruntime

Array = npt.NDArray[Any]
# ONNX Runtime's name of a device, and the device's number.
Device = tuple[str, int]

CPU: Final = "cpu"
# Providers that keep tensors on another device, and its name.
_DEVICES: Final = {"TensorrtExecutionProvider": "cuda", "CUDAExecutionProvider": "cuda"}
_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16, which NumPy lacks


def device_of(session: Any) -> Device:
    """Return the device on which a session keeps its tensors."""
    for provider, settings in session.get_provider_options().items():
        if provider in _DEVICES:
            return _DEVICES[provider], int(settings.get("device_id", 0))
    return CPU, 0


def empty_value(shape: Sequence[int], dtype: np.dtype[Any], device: Device) -> Any:
    """Return a new OrtValue on a device, filled with zeros on the CPU."""
    if device[0] == CPU:
        return wrapped(np.zeros(shape, dtype))
    kind = _BFLOAT16 if _is_bfloat16(dtype) else dtype
    return import_onnxruntime().OrtValue.ortvalue_from_shape_and_type(shape, kind, *device)


def as_known(array: Array) -> Array:
    """Return an array as a type that NumPy has."""
    return array.view(np.uint16) if _is_bfloat16(array.dtype) else array


def wrapped(array: Array) -> Any:
    """Return an OrtValue that shares a contiguous array's memory."""
    values = import_onnxruntime().OrtValue
    if _is_bfloat16(array.dtype):
        return values.ortvalue_from_numpy_with_onnx_type(as_known(array), _BFLOAT16)
    return values.ortvalue_from_numpy(array)


def copied(value: Any, dtype: np.dtype[Any]) -> Array:
    """Return the contents of an OrtValue on any device as a new array."""
    if not _is_bfloat16(dtype):
        return np.array(value.numpy())
    array = np.empty(value.shape(), dtype)
    wrapped(array).update_inplace(value)
    return array


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    # Looking up a type's name is slow.
    return dtype.kind == "V" and dtype.name == "bfloat16"
