"""Recognise files that are not ONNX models in binary format, and name their format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pom_export.errors import InputError
from pom_export.files import mistaken_for

HEAD: Final = 512
"""How many bytes at the beginning of a file identify its format."""

_TO_BINARY: Final = "Convert it: onnx.save(onnx.load({name!r}, format={format!r}), 'model.onnx')"
_EXPORT: Final = "Export it first: pom-export export {name} -o model.onnx"
# How files begin, what they are, what to do, and onnx's name for the format.
_KINDS: Final = (
    (rb"\s*\{", "in JSON, and only ONNX's binary format is read", _TO_BINARY, "json"),
    (rb"\s*<\s*ir_version", "in ONNX's textual syntax, and only its binary format is read", _TO_BINARY, "onnxtxt"),
    (
        rb"(\s|#[^\n]*\n)*(ir_version|opset_import|producer_name|graph)\s*[:{]",
        "a protocol buffer as text, and only ONNX's binary format is read",
        _TO_BINARY,
        "textproto",
    ),
    (rb"PK\x03\x04", "a zip archive, such as a checkpoint of PyTorch", _EXPORT, ""),
    (rb"[\s\S]{8}\{\"", "a file of safetensors, which holds weights without a graph", _EXPORT, ""),
)


def check_is_binary_onnx(file: Path) -> None:
    """Raise InputError, naming the format and the remedy, for a file in a known format other than binary ONNX."""
    with file.open("rb") as stream:
        head = stream.read(HEAD)
    if found := mistaken_for(head):
        what, hint = found
        raise InputError(f"model {file} is {what}", hint)
    for start, what, hint, onnx_format in _KINDS:
        if re.match(start, head):
            raise InputError(f"model {file} is {what}", hint.format(name=file.name, format=onnx_format))
