"""Check what an ONNX file declares before a parser builds it: sizes, nesting, tensors, function calls.

Parsers trust what a file declares: two bytes become a node of a hundred, a tensor's shape is taken for its size, and
functions are expanded call by call. The bytes are therefore walked first, with bounds on time and memory.
"""

from __future__ import annotations

import mmap
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pom_export.errors import InputError
from pom_export.files import readable_file
from pom_export.graph.declared_tensor import External, read_tensor
from pom_export.graph.external_file import check_external
from pom_export.graph.opsets import STANDARD_DOMAINS
from pom_export.graph.other_formats import check_is_binary_onnx
from pom_export.graph.wire import LENGTH, WireError, fields

_TENSOR, _NODE, _FUNCTION, _SPARSE = "Tensor", "Node", "Function", "Sparse"
# The kinds of the fields in ONNX's messages that are messages themselves, by number; a * marks repeated fields.
MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "Model": {7: "Graph", 8: "*Opset", 14: "*Entry", 20: "*Training", 25: "*Function", 26: "*Configuration"},
    "Graph": {
        1: "*Node",
        5: "*Tensor",
        11: "*Value",
        12: "*Value",
        13: "*Value",
        14: "*Annotation",
        15: "*Sparse",
        16: "*Entry",
    },
    _NODE: {5: "*Attribute", 9: "*Entry", 10: "*Configuration"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "*Tensor",
        11: "*Graph",
        14: "Type",
        15: "*Type",
        22: "Sparse",
        23: "*Sparse",
    },
    _FUNCTION: {7: "*Node", 9: "*Opset", 11: "*Attribute", 12: "*Value", 14: "*Entry"},
    _TENSOR: {},  # walked by `read_tensor`
    _SPARSE: {1: "Tensor", 2: "Tensor"},
    "Training": {1: "Graph", 2: "Graph", 3: "*Entry", 4: "*Entry"},
    "Annotation": {2: "*Entry"},
    "Value": {2: "Type", 4: "*Entry"},
    "Type": {1: "TensorType", 4: "Element", 5: "Map", 7: "Opaque", 8: "TensorType", 9: "Element"},
    "TensorType": {2: "Shape"},
    "Element": {1: "Type"},
    "Map": {2: "Type"},
    "Shape": {1: "*Dimension"},
    "Dimension": {},
    "Opaque": {},
    "Opset": {},
    "Entry": {},
    "Configuration": {},
}
# Protocol buffers are limited to 2 GiB, and parsers to 100 levels.
_LARGEST_FILE: Final = 2**31 - 1
_DEEPEST: Final = 100
# A model of a hundred layers has 200,000 fields, and a few MB of names.
_MOST_FIELDS: Final = 1_000_000
_MOST_TEXT: Final = 64 * 2**20
# The most nodes once every function call is inlined.
_MOST_NODES: Final = 200_000
_NAME_FIELDS: Final = {
    _NODE: {4: "name", 7: "domain", 8: "overload"},
    _FUNCTION: {1: "name", 10: "domain", 13: "overload"},
}
# The position of the identifier in ONNX Runtime's own format.
_ORT_PLACE: Final = slice(4, 8)
_ORT_MARK: Final = b"ORTM"
# Domain, name and overload, which identify a function.
_Name = tuple[str, str, str]


def is_ort_format(file: Path) -> bool:
    """Return whether a file is in ONNX Runtime's own format, judged by its content."""
    with file.open("rb") as stream:
        return stream.read(_ORT_PLACE.stop)[_ORT_PLACE] == _ORT_MARK


@dataclass(frozen=True)
class Contents:
    """What a file consists of.

    Attributes:
        externals: the names of its files of external weights.
        operators: the operators of its nodes, outside of functions.
    """

    externals: frozenset[str]
    operators: frozenset[str]


def check_onnx_file(path: str | os.PathLike[str]) -> Contents:
    """Check what an ONNX file declares, and return what it consists of.

    Raises:
        InputError: the file cannot be read, is of another kind, is incomplete, declares more than it contains or than
            any model needs, or refers to weights outside of its own folder.
    """
    file = readable_file(path, "model")
    size = file.stat().st_size
    if is_ort_format(file):
        raise InputError(
            f"model {file} is in ONNX Runtime's own format",
            "Give the .onnx file that it was made from; verify takes either",
        )
    check_is_binary_onnx(file)
    if size > _LARGEST_FILE:
        raise InputError(
            f"model {file} has {size} bytes; an ONNX file has at most {_LARGEST_FILE}",
            "Store its weights in a separate file",
        )
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        walk = _Walk(content)
        try:
            walk.message("Model", 0, size, 0, Counter())
            walk.check_calls()
        except WireError as error:
            raise InputError(f"{file} is not a complete ONNX model: {error}", "Export it again") from error
    for external in walk.externals:
        check_external(file, external)
    return Contents(
        frozenset(external.location for external in walk.externals), frozenset(name for _, name, _ in walk.main)
    )


@dataclass
class _Walk:
    """What was found in a file so far."""

    content: mmap.mmap
    externals: list[External] = field(default_factory=list)
    main: Counter[_Name] = field(default_factory=Counter)
    functions: dict[_Name, Counter[_Name]] = field(default_factory=dict)
    count: int = 0
    text: int = 0

    def message(self, kind: str, start: int, end: int, depth: int, calls: Counter[_Name]) -> None:
        """Walk a message and everything in it, adding its nodes to the calls of the enclosing graph or function."""
        if depth > _DEEPEST:
            raise WireError(f"it is nested deeper than {_DEEPEST} levels")
        if kind == _SPARSE:
            raise WireError("it holds sparse tensors, which are not supported")
        if kind == _TENSOR:
            self._tensor(start, end)
            return
        inner, named, seen, name = MESSAGES[kind], _NAME_FIELDS.get(kind, {}), set(), {}
        if kind == "Model":
            calls = self.main
        elif kind == _FUNCTION:
            calls = Counter()
        for number, wire, first, last in fields(self.content, start, end):
            self._count()
            if wire != LENGTH or number not in inner:
                self.text += last - first if wire == LENGTH else 0
                if number in named and wire == LENGTH:
                    name[named[number]] = self.content[first:last].decode("utf-8", "replace")
                continue
            part = inner[number]
            if not part.startswith("*") and number in seen:
                raise WireError(f"its {kind.lower()} has field {number} twice")
            seen.add(number)
            self.message(part.lstrip("*"), first, last, depth + 1, calls)
        if self.text > _MOST_TEXT:
            raise WireError(f"it holds more than {_MOST_TEXT} bytes of names and texts")
        if named:
            self._add(kind, name, calls)

    def _count(self) -> None:
        self.count += 1
        if self.count > _MOST_FIELDS:
            raise WireError(f"it has more than {_MOST_FIELDS} fields")

    def _tensor(self, start: int, end: int) -> None:
        external, text = read_tensor(self.content, start, end, self._count)
        self.text += text
        if external is not None:
            self.externals.append(external)

    def _add(self, kind: str, name: Mapping[str, str], calls: Counter[_Name]) -> None:
        domain = name.get("domain", "")
        domain = STANDARD_DOMAINS[0] if domain in STANDARD_DOMAINS else domain
        called = (domain, name.get("name", ""), name.get("overload", ""))
        if kind == _NODE:
            calls[called] += 1
        elif called in self.functions:
            raise WireError(f"function {called[1]} is defined twice")
        else:
            self.functions[called] = calls

    def check_calls(self) -> None:
        """Raise WireError if a function calls itself, or if inlining all calls would make too many nodes."""
        sizes: dict[_Name, int] = {}
        open_calls: set[_Name] = set()

        def size_of(calls: Counter[_Name]) -> int:
            return sum(count * (1 + (size(name) if name in self.functions else 0)) for name, count in calls.items())

        def size(name: _Name) -> int:
            if name not in sizes:
                if name in open_calls or len(open_calls) > _DEEPEST:
                    raise WireError(f"function {name[1]} calls itself, or calls are nested deeper than {_DEEPEST}")
                open_calls.add(name)
                sizes[name] = size_of(self.functions[name])
                open_calls.remove(name)
            return sizes[name]

        most = max([size_of(self.main), *map(size, self.functions)])
        if most > _MOST_NODES:
            raise WireError(f"it has {min(most, 2**63)} nodes once functions are inlined, more than {_MOST_NODES}")
