"""Read programs of torch.export (.pt2) without running anything in them.

torch.export.load trusts its file: it unpickles objects, evaluates text as Python and resolves the names of functions
anywhere below `torch`. So the archive is read here first, and refused where it asks for more than a program needs.
"""

from __future__ import annotations

import ast
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.export import ExportedProgram

import pom_export.mixer  # noqa: F401 (registers the op that programs may hold)
from pom_export.errors import CheckpointError, InputError, reason_of
from pom_export.files import readable_file

_HINT = "Save it with torch.export.save, or export the module itself with pom_export.export"
_FORMAT = "archive_format"
# Weights as raw bytes and descriptions as JSON; anything else, such as custom objects, would be unpickled.
_MEMBERS = re.compile(
    r"[^/]+/(\.data/\w+|archive_\w+|byteorder|models/\w+\.json|data/\w+/\w+_config\.json|data/sample_inputs/\w+\.pt"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+)"
)
_TARGETS = re.compile(r"torch\.ops(\.\w+){2,3}|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_\w+")
# What sympy's own text of a size is made of.
_SIZE_NAMES = {
    *("Symbol", "Integer", "Add", "Mul", "Pow", "Max", "Min", "Mod", "true", "false", "oo", "int_oo"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "IntTrueDiv", "Rational", "Infinity", "IntInfinity"),
    *("NegativeInfinity", "NegativeIntInfinity", "Equality", "Unequality", "Le", "Lt", "Ge", "Gt", "Eq", "Ne"),
    *("LessThan", "GreaterThan", "StrictLessThan", "StrictGreaterThan"),
}
_SIZE_NODES = (ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.UnaryOp, ast.USub)
_SIZE_OPERATORS = (ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Pow, ast.Div, ast.FloorDiv, ast.Mod)


def is_exported_program(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is an archive of torch.export, told by content."""
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[-1] == _FORMAT for name in archive.namelist())


def read_exported_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Return the program in a .pt2 file.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: it is damaged, or holds what would have to be run to be read.
    """
    file = readable_file(path, "program")
    try:
        with zipfile.ZipFile(file) as archive:
            _check_archive(file, archive)
        # With this torch.load unpickles tensors and plain values only, here and in whatever torch.export.load calls.
        with mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(file)
    except InputError:
        raise
    except Exception as error:  # whatever damaged bytes make of the parser
        raise CheckpointError(f"{file} is no whole program of torch.export: {reason_of(error)}", _HINT) from error


def _check_archive(file: Path, archive: zipfile.ZipFile) -> None:
    for name in archive.namelist():
        if not _MEMBERS.fullmatch(name):
            raise CheckpointError(f"{file} holds {name.partition('/')[2]!r}, which would have to be run", _HINT)
        if name.endswith(".json"):
            for key, value in _entries(json.loads(archive.read(name))):
                if not _is_harmless(key, value):
                    raise CheckpointError(f"{file}: {key} {str(value)[:80]!r} would have to be run", _HINT)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def _is_harmless(key: str, value: Any) -> bool:
    if key == "use_pickle":
        return value is False
    if key == "target" and isinstance(value, str):
        return _TARGETS.fullmatch(value) is not None
    if key == "expr_str":
        return isinstance(value, str) and _is_size(value)
    return not (isinstance(value, str) and "__enum__" in value)


def _is_size(text: str) -> bool:
    """Return whether text is an expression of sizes: it is going to be evaluated as Python."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(
        isinstance(node, (*_SIZE_NODES, *_SIZE_OPERATORS))
        and (not isinstance(node, ast.Name) or node.id in _SIZE_NAMES or re.fullmatch(r"[suz]+\d+", node.id))
        and (not isinstance(node, ast.Constant) or isinstance(node.value, (int, float)) or str(node.value).isalnum())
        and (not isinstance(node, ast.Call) or isinstance(node.func, ast.Name))
        for node in nodes
    )
