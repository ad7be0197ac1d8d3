"""The nesting of inputs and outputs: Python's own containers, and no types that are looked up by name."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import pytest
from torch.utils._pytree import tree_structure, treespec_dumps, treespec_loads

from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError
from pom_export.checkpoint.programs.structures import parse_structure

LEAF = {"type": None, "context": None, "children_spec": []}


def text(kind: str, context: Any, children: int = 1) -> str:
    return json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": [LEAF] * children}])


@pytest.mark.parametrize(
    "value",
    [1, (1, 2), [1, (2,), {}], {"a": 1, "b": [2]}, OrderedDict(z=1, a=(2, 3)), ((1,), {"mask": 2}), {3: 1}],
)
def test_structures_are_read_and_written_as_torch_does(value: Any) -> None:
    structure = parse_structure(treespec_dumps(tree_structure(value)))
    assert treespec_loads(structure.to_text()) == tree_structure(value)
    leaves = structure.flatten(value)
    assert len(leaves) == structure.leaves
    assert structure.build(iter(leaves)) == value
    assert type(structure.build(iter(leaves))) is type(value)


@pytest.mark.parametrize(
    "hostile",
    [
        text("collections.defaultdict", {"default_factory_module": "evil", "default_factory_name": "x"}),
        text("collections.namedtuple", "evil.Type"),
        text("evil.Type", None),
        text("builtins.dict", [{"__enum__": True, "fqn": "evil:Type", "name": "x"}]),
        text("builtins.tuple", [{"__enum__": True, "fqn": "evil:Type", "name": "x"}]),
        text("builtins.list", {"__enum__": True, "fqn": "evil:Type", "name": "x"}),
    ],
)
def test_types_by_name_are_refused(hostile: str) -> None:
    with pytest.raises(UnsafeError):
        parse_structure(hostile)


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "[1]",
        "[2, null]",
        text("builtins.dict", ["a", "b"]),
        text("builtins.dict", ["a", "a"], 2),
        text("builtins.dict", "ab", 2),
        '[1, {"type": "builtins.list", "context": "null", "children_spec": [' * 40,
        '{"type": "builtins.list", "context": "null", "children_spec": [' * 5000,
    ],
)
def test_damaged_structures_are_refused(damaged: str) -> None:
    with pytest.raises(MalformedError):
        parse_structure(damaged)


def test_structures_nest_so_deep_and_no_deeper() -> None:
    node: dict[str, Any] = LEAF
    for _ in range(40):
        node = {"type": "builtins.list", "context": "null", "children_spec": [node]}
    with pytest.raises(MalformedError, match="nested"):
        parse_structure(json.dumps([1, node]))


def test_examples_must_be_nested_so() -> None:
    structure = parse_structure(treespec_dumps(tree_structure({"a": (1, 2)})))
    for value in ({"b": (1, 2)}, {"a": (1,)}, {"a": 1}, [(1, 2)]):
        with pytest.raises(MalformedError):
            structure.flatten(value)
