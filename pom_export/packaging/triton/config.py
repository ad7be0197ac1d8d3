"""Triton's model configurations, in protobuf's text format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import TensorSpec

_TYPES: Final = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}


@dataclass(frozen=True)
class Word:
    """A name of the schema, which is written without quotes."""

    text: str


def as_text(message: Mapping[str, Any], indent: str = "") -> str:
    """Return a message in protobuf's text format.

    Args:
        message: fields by name: text, numbers, truth values, a `Word`, a mapping for a message, or a list of these for
            a repeated field. (Lists of numbers take one line.)
        indent: what every line begins with.
    """
    lines = []
    for name, value in message.items():
        if isinstance(value, (list, tuple)) and not any(isinstance(each, Mapping) for each in value):
            lines.append(f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]")
            continue
        for each in value if isinstance(value, (list, tuple)) else [value]:
            if each == {}:
                lines.append(f"{indent}{name} {{}}")
            elif isinstance(each, Mapping):
                lines += [f"{indent}{name} {{", as_text(each, f"{indent}  ").rstrip("\n"), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(each)}")
    return "".join(f"{line}\n" for line in lines)


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return value.text
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value)  # protobuf's text has JSON's escapes too


def type_word(dtype: np.dtype[Any]) -> Word:
    """Return the server's word for a type.

    Raises:
        InputError: it has none.
    """
    if dtype.name not in _TYPES:
        raise InputError(f"Triton has no type for {dtype}", "Export the model with another")
    return Word(_TYPES[dtype.name])


def tensor(spec: TensorSpec, *, batched: bool, **more: Any) -> dict[str, Any]:
    """Return the entry of an input or output.

    Args:
        spec: the input or output.
        batched: whether its first axis is the server's batch, which is not written.
        more: further fields.
    """
    axes: Sequence[str | int] = spec.axes[1:] if batched else spec.axes
    dims = [axis if isinstance(axis, int) else -1 for axis in axes]
    # The server takes no tensor without axes: it takes one axis of one value, and gives the model none.
    shape: dict[str, Any] = {"dims": dims} if dims else {"dims": [1], "reshape": {"shape": []}}
    return {"name": spec.name, "data_type": type_word(spec.dtype), **shape, **more}


def controls() -> list[dict[str, Any]]:
    """Return the inputs by which the server says where a sequence starts and ends, and which it is."""

    def flag(name: str) -> dict[str, Any]:
        control = {"kind": Word(f"CONTROL_SEQUENCE_{name}"), "int32_false_true": [0, 1]}
        return {"name": name, "control": control}

    corrid = {"kind": Word("CONTROL_SEQUENCE_CORRID"), "data_type": Word("TYPE_UINT64")}
    return [flag("START"), flag("END"), {"name": "CORRID", "control": corrid}]


def parameter(name: str, value: str) -> dict[str, Any]:
    """Return a parameter of the backend."""
    return {"key": name, "value": {"string_value": value}}
