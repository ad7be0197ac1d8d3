"""Arrays in requests and responses: nested lists of JSON, or bytes in base64 with their type and shape."""

from __future__ import annotations

import base64
import binascii
import math
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pom_export.errors import kind_of
from pom_export.serving.errors import RequestError
from pom_export.values import is_whole

Array = npt.NDArray[Any]

LISTS: Final = "lists"
BASE64: Final = "base64"
ENCODINGS: Final = (LISTS, BASE64)
# Types in base64, little-endian.
_TYPES: Final = ("float16", "float32", "float64", "int32", "int64")
_FIELDS: Final = ("dtype", "shape", "data")
_MOST_AXES: Final = 8


def decoded(value: Any, param: str) -> Array:
    """Return an array of a request.

    Args:
        value: nested lists of numbers, or an object of `dtype`, `shape` and `data` in base64.
        param: the field that holds it, for messages.

    Raises:
        RequestError: it is neither, its lists differ in length, or it holds anything but numbers.
    """
    if isinstance(value, dict):
        return _from_base64(value, param)
    if not isinstance(value, list):
        raise _refusal(f"{param} is {kind_of(value)}", f"Give lists of numbers, or {', '.join(_FIELDS)}", param)
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise _refusal(
            f"{param} is not an array: its lists differ in length or depth", "Fill them up", param
        ) from error
    if array.dtype.kind not in "iuf" or _holds_bools(value):
        raise _refusal(f"{param} holds something other than numbers, or numbers of more than 64 bits", "", param)
    return array


def _holds_bools(values: list[Any]) -> bool:
    """Return whether there are bools in nested lists, which NumPy would turn into numbers beside others."""
    types = set(map(type, values))
    return bool in types or (list in types and any(map(_holds_bools, values)))


def _from_base64(value: dict[str, Any], param: str) -> Array:
    if value.keys() != set(_FIELDS):
        raise _refusal(
            f"{param} has the fields {', '.join(value) or 'of nothing'}", f"It takes {', '.join(_FIELDS)}", param
        )
    dtype, shape, data = (value[name] for name in _FIELDS)
    if dtype not in _TYPES:
        raise _refusal(f"{param}'s dtype is {dtype!r}", f"One of {', '.join(_TYPES)}, little-endian", param)
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(is_whole(n) and n >= 1 for n in shape):
        raise _refusal(
            f"{param}'s shape is {shape!r}", f"Give a list of at most {_MOST_AXES} sizes, each at least 1", param
        )
    if not isinstance(data, str):
        raise _refusal(f"{param}'s data is {kind_of(data)}", "Give a string of base64", param)
    try:
        content = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refusal(f"{param}'s data is not base64", "Encode the array's bytes, little-endian", param) from error
    little = np.dtype(dtype).newbyteorder("<")
    if len(content) != math.prod(shape) * little.itemsize:
        raise _refusal(
            f"{param}'s data has {len(content)} bytes, but {dtype}{shape} has {math.prod(shape) * little.itemsize}",
            "Give the whole array",
            param,
        )
    return np.frombuffer(content, little).reshape(shape).astype(dtype)


def encoded(array: Array, encoding: str) -> Any:
    """Return an array of finite numbers for a response, in one of the `ENCODINGS`.

    Types that NumPy lacks become float32.
    """
    if array.dtype.name not in _TYPES:
        array = array.astype(np.float32)
    if encoding == LISTS:
        return array.tolist()
    content = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": base64.b64encode(content).decode("ascii")}


def _refusal(what: str, hint: str, param: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, what, hint, param=param)
