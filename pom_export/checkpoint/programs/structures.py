"""The nesting of a program's inputs and outputs: tuples, lists and mappings from a fixed list, never types by name."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from pom_export.checkpoint.programs.checks import (
    MalformedError,
    UnsafeError,
    integer,
    list_of,
    record,
    shown,
    text,
)
from pom_export.errors import reason_of
from pom_export.json_text import parse_json

_SEQUENCES: Final = {"builtins.tuple": tuple, "builtins.list": list}
_MAPPINGS: Final = {"builtins.dict": dict, "collections.OrderedDict": OrderedDict}
_TYPES: Final[dict[str, Callable[[Iterable[Any]], Any]]] = {**_SEQUENCES, **_MAPPINGS}
_VERSION: Final = 1
_DEEPEST: Final = 32
_NODE: Final = record("a structure", type=lambda v: v, context=lambda v: v, children_spec=list_of(lambda v: v))


@dataclass(frozen=True)
class Structure:
    """A nesting.

    Attributes:
        kind: name of the container's type; None: a leaf.
        keys: keys of a mapping.
        children: contents of the container.
    """

    kind: str | None
    keys: tuple[str | int, ...] = ()
    children: tuple[Structure, ...] = ()

    @property
    def leaves(self) -> int:
        """The number of leaves in the whole nesting."""
        return 1 if self.kind is None else sum(child.leaves for child in self.children)

    def flatten(self, value: Any) -> list[Any]:
        """Return the leaves of a value with this nesting.

        Raises:
            MalformedError: its nesting is different.
        """
        if self.kind is None:
            return [value]
        mapping = self.kind in _MAPPINGS
        if not isinstance(value, dict if mapping else (tuple, list)) or len(value) != len(self.children):
            raise MalformedError(f"an example is {shown(value)} where the program takes {self.kind}")
        if mapping and set(value) != set(self.keys):
            raise MalformedError(f"an example has the keys {shown(', '.join(map(str, value)))}")
        inner = [value[key] for key in self.keys] if isinstance(value, dict) else value
        return [leaf for child, item in zip(self.children, inner, strict=True) for leaf in child.flatten(item)]

    def build(self, leaves: Iterator[Any]) -> Any:
        """Return a value with this nesting from its leaves in order."""
        if self.kind is None:
            return next(leaves)
        items = [child.build(leaves) for child in self.children]
        return _TYPES[self.kind](zip(self.keys, items, strict=True) if self.kind in _MAPPINGS else items)

    def to_text(self) -> str:
        """Return the nesting in torch's own format."""
        return json.dumps([_VERSION, self._to_json()])

    def _to_json(self) -> dict[str, Any]:
        context = json.dumps(list(self.keys) if self.kind in _MAPPINGS else None)
        return {
            "type": self.kind,
            "context": None if self.kind is None else context,
            "children_spec": [child._to_json() for child in self.children],
        }


def parse_structure(value: Any) -> Structure:
    """Parse the text of a structure.

    Raises:
        MalformedError: it is damaged, or too deep.
        UnsafeError: it contains a type that is not one of Python's own.
    """
    if not isinstance(value, str):
        raise MalformedError(f"a structure is {shown(value)}")
    parsed = _parsed(value)
    if not isinstance(parsed, list) or len(parsed) != 2 or parsed[0] != _VERSION:
        raise MalformedError(f"a structure is {shown(value)}")
    return _parse(parsed[1], _DEEPEST)


def _parse(value: Any, deepest: int) -> Structure:
    if not deepest:
        raise MalformedError(f"a structure is nested more than {_DEEPEST} times")
    node = _NODE(value)
    kind, context = node["type"], node["context"]
    children = tuple(_parse(child, deepest - 1) for child in node["children_spec"])
    if kind is None and context is None and not children:
        return Structure(None)
    if not isinstance(kind, str) or kind not in _TYPES:
        raise UnsafeError(f"a structure of the type {shown(kind)}")
    keys = _parsed(context) if isinstance(context, str) else shown(context)
    if kind in _MAPPINGS:
        names = tuple(_key(key) for key in list_of(lambda v: v)(keys))
        if len(names) != len(children) or len(set(names)) != len(names):
            raise MalformedError(f"a mapping of {len(children)} has {len(names)} keys")
        return Structure(kind, names, children)
    if keys is not None:
        raise UnsafeError(f"a structure with the context {shown(context)}")
    return Structure(kind, (), children)


def _key(value: Any) -> str | int:
    if isinstance(value, (dict, list)):
        raise UnsafeError(f"a mapping with {shown(value)} for a key")
    return text(value) if isinstance(value, str) else int(integer()(value))


def _parsed(value: str) -> Any:
    try:
        return parse_json(value)
    except ValueError as error:
        raise MalformedError(f"a structure is damaged: {reason_of(error)}") from error
