"""Convert `dynamic_shapes` in any form that torch.export accepts to one mapping, by input and axis."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.export import AdditionalInputs, Dim, ShapesCollection

from pom_export.errors import InputError, kind_of, reason_of

Shapes = Mapping[str, Mapping[int, Any]]
_HINT = "Give it as torch.export takes it, such as {'x': {0: Dim.AUTO, 1: Dim.AUTO}}"
_NOTHING: tuple[Any, ...] = (None, {}, (), [])
_Hint = type(Dim.AUTO)


def is_automatic(size: Any) -> bool:
    """Return whether an entry lets tracing decide if a dimension is dynamic."""
    return isinstance(size, _Hint) and size.type == Dim.AUTO.type


def trace_shapes(shapes: Mapping[str, Mapping[int, Any]]) -> dict[str, dict[int, Any]]:
    """Return the shapes for torch, with Dim.DYNAMIC as Dim.AUTO, since we report fixed dimensions ourselves, by name.

    The result is a new mapping, because torch writes to it.
    """
    return {name: {axis: _relaxed(size) for axis, size in axes.items()} for name, axes in shapes.items()}


def _relaxed(size: Any) -> Any:
    return Dim.AUTO(min=size.min, max=size.max) if is_hint(size) else size


def is_hint(size: Any) -> bool:
    """Return whether an entry is Dim.AUTO or Dim.DYNAMIC, as opposed to a named dimension."""
    return isinstance(size, _Hint)


def named_shapes(
    module: nn.Module, given: Any, examples: Mapping[str, Tensor], dynamic_shapes: Any
) -> dict[str, dict[int, Any]]:
    """Return the dimensions that a user wants to be dynamic, by input and axis; all others are fixed.

    Args:
        module: the module that takes the inputs.
        given: the example inputs as the user gave them: a tensor, a sequence by position, or a mapping by name.
        examples: the example inputs by name.
        dynamic_shapes: a mapping by input, a sequence by position, or torch's ShapesCollection or AdditionalInputs. For
            each input: a mapping by axis, a sequence, or None. For each axis: a Dim, its name, a hint such as Dim.AUTO;
            or a number, Dim.STATIC or None if it is fixed.

    Raises:
        InputError: it has another form, or does not fit the examples.
    """
    if isinstance(dynamic_shapes, (ShapesCollection, AdditionalInputs)):
        dynamic_shapes = _resolved(module, given, dynamic_shapes)
    if isinstance(dynamic_shapes, Mapping):
        by_name = dict(dynamic_shapes)
        if unknown := [name for name, shape in by_name.items() if name not in examples and shape not in _NOTHING]:
            raise InputError(
                f"dynamic_shapes names {unknown[0]!r}; the example inputs are {', '.join(examples)}", "Check the name"
            )
    elif isinstance(dynamic_shapes, (tuple, list)):
        order = [name for name in inspect.signature(module.forward).parameters if name in examples]
        if len(dynamic_shapes) != len(order):
            raise InputError(
                f"dynamic_shapes has {len(dynamic_shapes)} entries for {len(order)} example inputs",
                "Give one per input, None where nothing is dynamic, or a mapping by name",
            )
        by_name = dict(zip(order, dynamic_shapes, strict=True))
    else:
        raise InputError(f"dynamic_shapes is {kind_of(dynamic_shapes)}", _HINT)
    return {name: _by_axis(name, tensor, by_name.get(name)) for name, tensor in examples.items()}


def _resolved(module: nn.Module, given: Any, collection: ShapesCollection | AdditionalInputs) -> Any:
    """Resolve a collection of torch's for the examples; it refers to the tensors themselves, or to their sizes."""
    if isinstance(given, (Tensor, np.ndarray)):
        given = (given,)
    arguments, keywords = ((), dict(given)) if isinstance(given, Mapping) else (tuple(given), {})
    try:
        return collection.dynamic_shapes(module, arguments, keywords)
    except Exception as error:
        raise InputError(
            f"dynamic_shapes does not fit the example inputs: {reason_of(error)}", "Build it from the same tensors"
        ) from error


def _by_axis(name: str, tensor: Tensor, shape: Any) -> dict[int, Any]:
    if shape is None:
        return {}
    if isinstance(shape, Mapping):
        sizes = dict(shape)
        if any(type(axis) is not int or not -tensor.dim() <= axis < tensor.dim() for axis in sizes):
            raise InputError(
                f"dynamic_shapes of {name} has the axes {list(sizes)}; its shape is {list(tensor.shape)}", _HINT
            )
        sizes = {axis % tensor.dim(): size for axis, size in sizes.items()}
    elif isinstance(shape, Sequence) and not isinstance(shape, str):
        if len(shape) != tensor.dim():
            raise InputError(
                f"dynamic_shapes of {name} has {len(shape)} entries; its shape is {list(tensor.shape)}", _HINT
            )
        sizes = dict(enumerate(shape))
    else:
        raise InputError(f"dynamic_shapes of {name} is {kind_of(shape)}", _HINT)
    dynamic = {}
    for axis, size in sizes.items():
        if not _is_fixed(f"dimension {axis} of {name}", tensor.shape[axis], size):
            dynamic[axis] = Dim(size) if isinstance(size, str) else size
    return dynamic


def _is_fixed(where: str, given: int, size: Any) -> bool:
    """Return whether an entry fixes its axis.

    Raises:
        InputError: torch does not know such an entry, or the example has another size.
    """
    if size is None or (isinstance(size, _Hint) and size.type == Dim.STATIC.type):
        return True
    if type(size) is int:
        if size != given:
            raise InputError(
                f"dynamic_shapes fixes {where} at {size}, but the example has {given}", "Give another example"
            )
        return True
    if isinstance(size, str):
        if not size.isidentifier():
            raise InputError(f"dynamic_shapes names {where} {size!r}", "Use letters, digits and underscores")
        return False
    if isinstance(size, (Dim, _Hint)):
        return False
    raise InputError(f"dynamic_shapes gives {kind_of(size)} for {where}", _HINT)
