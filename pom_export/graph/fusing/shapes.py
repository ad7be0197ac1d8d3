"""Complete the shapes of a graph's values from what was seen when it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from pom_export.graph.schema import register_schema

_UNKNOWN: Final = "unk__"


class SeenValue(NamedTuple):
    """The shape and the type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Seen(NamedTuple):
    """One run of a graph.

    Attributes:
        sizes: the sizes of the dynamic dimensions of its inputs, by name.
        values: the shapes and types of its values, by name.
    """

    sizes: Mapping[str, int]
    values: Mapping[str, SeenValue]


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the types and shapes that onnx infers, or as it was where it fails."""
    register_schema()
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return model


def complete_shapes(graph: ir.Graph, runs: Sequence[Seen]) -> None:
    """Set the shapes and types of values from several runs, where onnx does not know them.

    A size that was the same in all runs is fixed, and one that followed a dimension of the inputs has its name.
    """
    names = {size for value in graph.inputs for size in _names(value)}
    for node in graph:
        for value in node.outputs:
            seen = [run.values.get(value.name or "") for run in runs]
            known = [each.shape for each in seen if each is not None]
            if value.type is None and seen and seen[0] is not None:
                value.type = ir.TensorType(ir.DataType.from_numpy(seen[0].dtype))
            if len(known) == len(runs) and len({len(shape) for shape in known}) == 1:
                own = list(value.shape) if value.shape is not None and len(value.shape) == len(known[0]) else []
                sizes = [_size(axis, known, runs) for axis in range(len(known[0]))]
                value.shape = ir.Shape(
                    [_better(own[axis] if own else None, size, names) for axis, size in enumerate(sizes)]
                )


def _names(value: ir.Value) -> list[str]:
    return [size.value for size in value.shape or () if not isinstance(size, int) and size.value is not None]


def _size(axis: int, shapes: Sequence[tuple[int, ...]], runs: Sequence[Seen]) -> int | str | None:
    sizes = [shape[axis] for shape in shapes]
    for name in runs[0].sizes:
        if sizes == [run.sizes[name] for run in runs] and len(set(sizes)) > 1:
            return name
    return sizes[0] if len(set(sizes)) == 1 and len(runs) > 1 else None


def _better(
    declared: int | ir.SymbolicDim | None, seen: int | str | None, names: set[str]
) -> int | str | ir.SymbolicDim | None:
    """Return a declared size if it is a number or a name of the inputs' dimensions, else what was seen."""
    if isinstance(declared, int) or seen is None:
        return None if isinstance(declared, ir.SymbolicDim) and str(declared.value).startswith(_UNKNOWN) else declared
    if isinstance(declared, ir.SymbolicDim) and declared.value in names:
        return declared
    return seen
