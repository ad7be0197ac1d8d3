"""Find the tensors in what a module returns, and name each after its place in the structure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Collection, Container, ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES, tree_iter, tree_leaves

from pom_export.errors import InputError, kind_of
from pom_export.graph.wrappers import forward_signature

_NO_TENSORS = (int, float, complex, str, bytes, bool, type(None), torch.SymInt, torch.SymFloat, torch.SymBool,
               torch.dtype, torch.device, torch.Size)  # fmt: skip
# How deep an object's attributes are searched.
_DEEPEST = 4
# A structure with more levels than this contains itself.
_MOST_STEPS = 64
_ODD = re.compile(r"[^\w.:/\-]+")


@dataclass(frozen=True)
class _Leaf:
    """A value in a result; `keys` are the names on the path to it, `steps` the names and indices."""

    keys: tuple[str, ...]
    steps: tuple[str, ...]
    starts_with_key: bool
    value: Any

    def full_name(self) -> str:
        return "_".join(self.steps if self.starts_with_key else ("y", *self.steps))


def named_outputs(result: Any) -> dict[str, Tensor]:
    """Return the tensors in a module's result by name, in order.

    Tuples, lists, mappings, named tuples and dataclasses are searched. A tensor is named after the keys and fields on
    its path; indices are added if these are not unique, or if there are none.

    Raises:
        InputError: something in the result contains tensors that would be lost, or is a tensor of a kind that ONNX
            lacks.
    """
    leaves = [leaf for leaf in _leaves(result, (), ()) if _is_tensor(leaf)]
    keys = ["_".join(leaf.keys) for leaf in leaves]
    if keys == [""]:
        return {"y": leaves[0].value}
    named: dict[str, Tensor] = {}
    for leaf, key in zip(leaves, keys, strict=True):
        alone = key and keys.count(key) == 1
        named[free_name(key if alone else leaf.full_name(), named)] = leaf.value
    return named


def left_out(result: Any) -> list[str]:
    """Return a line for each value in a result that is not a tensor and therefore not in the file; None is ignored."""
    others = [leaf for leaf in _leaves(result, (), ()) if leaf.value is not None and not isinstance(leaf.value, Tensor)]
    return [
        f"the output {leaf.full_name()} is no tensor ({type(leaf.value).__name__}) and is not in the file"
        for leaf in others
    ]


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken, by appending underscores."""
    while name in taken:
        name += "_"
    return name


class TensorsOnly(nn.Module):
    """A module that returns a tuple of the tensors that another module returns, and nothing else.

    torch.export supports few structures, and torch.onnx only outputs that are tensors.

    Args:
        model: the other module.
        left_out: names of outputs that are left out.
    """

    def __init__(self, model: nn.Module, left_out: Collection[str] = ()) -> None:
        super().__init__()
        self.model = model
        self._left_out = frozenset(left_out)

    @property
    def forward(self) -> Callable[..., tuple[Tensor, ...]]:  # type: ignore[override]
        """Run the module on inputs by name; the signature, from which torch.export reads the names, is the module's."""

        def forward(**inputs: Any) -> tuple[Tensor, ...]:
            # Parameters among the outputs require gradients, which no caller here needs.
            outputs = named_outputs(self.model(**inputs))
            return tuple(tensor.detach() for name, tensor in outputs.items() if name not in self._left_out)

        forward.__signature__ = forward_signature(self.model)  # type: ignore[attr-defined]
        return forward


def _is_tensor(leaf: _Leaf) -> bool:
    """Return whether a leaf is a tensor that can be an output of a file.

    Raises:
        InputError: it is an unsupported kind of tensor, or an object that contains tensors.
    """
    value, name = leaf.value, leaf.full_name()
    if isinstance(value, Tensor):
        if value.is_nested:
            raise InputError(f"the output {name} is a nested tensor, which ONNX does not have", "Return a padded one")
        if value.layout != torch.strided:
            raise InputError(f"the output {name} is a sparse tensor, which ONNX does not have", "Return its to_dense()")
        if value.is_quantized:
            raise InputError(f"the output {name} is quantized, and can't be traced", "Return its dequantize()")
        if value.is_floating_point() and value.dtype.itemsize == 1:
            kind = str(value.dtype).removeprefix("torch.")
            raise InputError(f"the output {name} is {kind}, which can't be compared", "Return its float()")
        if value.is_complex():
            raise InputError(
                f"the output {name} is complex, which ONNX Runtime does not support", "Return torch.view_as_real of it"
            )
        return True
    if isinstance(value, _NO_TENSORS):
        return False
    kind = kind_of(value)
    if isinstance(value, (set, frozenset)) or hasattr(value, "__next__"):
        raise InputError(
            f"the output {name} is {kind}, which has no order in which to name its tensors", "Return a tuple"
        )
    if isinstance(value, (ValuesView, ItemsView)):
        raise InputError(f"the output {name} is {kind}, a view of a mapping", "Return the mapping, or a tuple")
    if type(value).__module__ == "numpy":
        raise InputError(f"the output {name} is a NumPy value ({kind}), which cannot be traced", "Return a tensor")
    if _holds_tensors(value):
        raise InputError(
            f"the output {name} is {kind}, whose tensors have no names",
            "Return a tuple, a mapping or a dataclass",
        )
    return False


def _holds_tensors(value: Any, depth: int = _DEEPEST) -> bool:
    if isinstance(value, Tensor):
        return True
    if not depth or isinstance(value, (*_NO_TENSORS, type)):
        return False
    slots = getattr(type(value), "__slots__", ())
    held = [*getattr(value, "__dict__", {}).values(), *(getattr(value, slot, None) for slot in slots)]
    return any(_holds_tensors(part, depth - 1) for part in tree_iter(held))


def _leaves(value: Any, keys: tuple[str, ...], steps: tuple[str, ...], starts: bool | None = None) -> Iterator[_Leaf]:
    """Yield the values in a result, in order."""
    parts = _parts(value)
    if len(steps) > _MOST_STEPS:
        raise InputError(f"the output {'_'.join(('y', *steps[:2]))} contains itself", "Return a tuple")
    if parts is None:
        yield _Leaf(keys, steps, bool(starts), value)
        return
    for key, part in parts:
        step = str(key) if isinstance(key, int) else key.name
        named = keys if isinstance(key, int) else (*keys, step)
        yield from _leaves(part, named, (*steps, step), not isinstance(key, int) if starts is None else starts)


@dataclass(frozen=True)
class _Key:
    """A key or field, as part of a name in the file."""

    name: str


def _key(key: Any) -> _Key:
    return _Key(_ODD.sub("_", str(key)).strip("_") or "y")


def _parts(value: Any) -> list[tuple[int | _Key, Any]] | None:
    """Return the contents of a structure, by index or by key; None if it is not a structure."""
    if isinstance(value, Mapping):
        return [(_key(key), part) for key, part in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(_key(field.name), getattr(value, field.name, None)) for field in fields(value)]
    if isinstance(value, torch.Size):
        return None
    if isinstance(value, tuple):
        # Field names of a named tuple; torch's own, such as the results of max and topk, store them differently.
        names: Any = getattr(value, "_fields", None) or getattr(type(value), "__match_args__", ())
        if len(names) == len(value):
            return [(_key(name), part) for name, part in zip(names, value, strict=True)]
    if isinstance(value, (tuple, list, deque)):
        return list(enumerate(value))
    if type(value) in SUPPORTED_NODES:  # registered by the class's author
        return list(enumerate(tree_leaves(value, is_leaf=lambda part: part is not value)))
    return None
