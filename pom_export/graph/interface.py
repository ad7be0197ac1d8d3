"""Inputs and outputs of an ONNX graph."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import ml_dtypes
import numpy as np
import onnx

from pom_export.errors import printable, with_article
from pom_export.graph.dimensions import is_name, name_by_place
from pom_export.graph.opsets import STANDARD_DOMAINS

# Kinds of NumPy types that each of the runtimes accepts.
_KINDS: Final = "biuf"
_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
# The longest name that is shown, and the longest that a file may have.
_LONGEST_SHOWN: Final = 200
LONGEST_NAME: Final = 1000
# What tools without names for dimensions write.
_NO_SIZE: Final = -1
# The most bytes that a call can take, counting fixed sizes only.
_LARGEST_BYTES: Final = 2**32
_MOST_AXES: Final = 16
_NEWEST_OPSET: Final = 1000


@dataclass(frozen=True)
class TensorSpec:
    """A graph input or output: its name, NumPy dtype (ml_dtypes' for bfloat16) and axes.

    An axis is a size, or the name of a dynamic dimension. A dimension without a name in the file is named by its
    position.
    """

    name: str
    dtype: np.dtype[Any]
    axes: tuple[str | int, ...]

    @property
    def token_shape(self) -> tuple[int, ...]:
        """The sizes after the batch and the tokens, of those that are fixed: () for ids, (d,) for vectors."""
        return tuple(axis for axis in self.axes[2:] if isinstance(axis, int))

    def __str__(self) -> str:
        return printable(f"{self.name} {self.dtype}[{', '.join(map(str, self.axes))}]", _LONGEST_SHOWN)


def read_interface(graph: onnx.GraphProto) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Return a graph's inputs, without initializers, and its outputs.

    Raises:
        ValueError: a name is missing or occurs twice, an input or output is not a tensor of numbers, lacks its shape,
            or is larger than any call could take; or the graph has no nodes, inputs or outputs.
    """
    if not graph.node:
        raise ValueError("its graph has no nodes")
    weights = _names(graph.initializer, "weight")
    inputs, outputs = _names(graph.input, "input"), _names(graph.output, "output")
    if not outputs:
        raise ValueError("its graph has no outputs")
    names = [name for name in inputs if name not in weights]
    if not names:
        raise ValueError("its graph takes no inputs")
    given = [_tensor_spec(inputs[name], "input", names) for name in names]
    return given, [_tensor_spec(value, "output", names) for value in outputs.values()]


def check_counts(values: Mapping[str, Sequence[int]], inputs: Sequence[TensorSpec]) -> None:
    """Check that the limits on the inputs' values fit the inputs.

    Args:
        values: how many values there are, by input: one number, or one per column. Inputs that do not exist may have
            been renamed since.
        inputs: the graph's inputs.

    Raises:
        ValueError: an input is not of integers, there is not one number per column, or a number exceeds the input's
            type.
    """
    for spec in inputs:
        counts = values.get(spec.name)
        if counts is None:
            continue
        integers = spec.dtype.kind in "iu"
        if not integers or len(counts) not in (1, *spec.axes[-1:]) or max(counts) - 1 > np.iinfo(spec.dtype).max:
            shown = printable(spec.name, _LONGEST_SHOWN)
            raise ValueError(
                f"its limits for {shown} do not fit: only an integer input has them, one, or one per column"
            )


def check_ranges(ranges: Mapping[str, Sequence[float]], inputs: Sequence[TensorSpec]) -> None:
    """Raise ValueError if a range of values is given for an input that is not floating-point."""
    others = {spec.name for spec in inputs if spec.dtype.kind in "biu"}
    if unknown := ranges.keys() & others:
        shown = printable(min(unknown), _LONGEST_SHOWN)
        raise ValueError(f"its limits for {shown} do not fit: only a floating-point input has a range")


def standard_opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard ops that a model imports.

    Raises:
        ValueError: it imports none, several, or one that does not exist.
    """
    # onnx.compose lists the imports of both models, including duplicates.
    versions = {imported.version for imported in model.opset_import if imported.domain in STANDARD_DOMAINS}
    if len(versions) != 1 or not 0 < min(versions) <= _NEWEST_OPSET:
        raise ValueError(f"it imports more than one version of the standard operators: {sorted(versions)[:3]}")
    return int(min(versions))


def _names(values: Iterable[Any], kind: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for value in values:
        if not value.name:
            raise ValueError(f"{with_article(kind)} has no name")
        if len(value.name) > LONGEST_NAME:
            raise ValueError(f"{printable(value.name, _LONGEST_SHOWN)} is a name of {len(value.name)} characters")
        if value.name in named:
            raise ValueError(f"it has the {kind} {value.name!r} twice")
        named[value.name] = value
    return named


def _tensor_spec(value: onnx.ValueInfoProto, kind: str, inputs: Sequence[str]) -> TensorSpec:
    name = printable(value.name, _LONGEST_SHOWN)
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"{kind} {name} is not a tensor, and only tensors are supported")
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        raise ValueError(f"{kind} {name} has no shape")
    if len(tensor.shape.dim) > _MOST_AXES:
        raise ValueError(f"{kind} {name} has {len(tensor.shape.dim)} dimensions")
    rank = len(tensor.shape.dim)
    found = [_axis(dim, f"dimension {i} of {kind} {name}") for i, dim in enumerate(tensor.shape.dim)]
    axes = tuple(name_by_place(value.name, rank, i, inputs) if axis is None else axis for i, axis in enumerate(found))
    if kind == "input" and 0 in axes:
        raise ValueError(f"input {name} has a dimension of size 0: {list(axes)}")
    dtype = _dtype(tensor.elem_type, f"{kind} {name}")
    fixed = math.prod(axis for axis in axes if isinstance(axis, int) and axis)
    if fixed * dtype.itemsize > _LARGEST_BYTES:
        raise ValueError(f"{kind} {name} has at least {fixed} values, more than a call can take")
    return TensorSpec(value.name, dtype, axes)


def _axis(dim: onnx.TensorShapeProto.Dimension, where: str) -> str | int | None:
    """Return the size or name of a dimension; None if it has neither."""
    if not dim.HasField("dim_value"):
        return dim.dim_param if is_name(dim.dim_param) else None
    if dim.dim_value < _NO_SIZE:
        raise ValueError(f"{where} is {dim.dim_value}")
    return None if dim.dim_value == _NO_SIZE else int(dim.dim_value)


def _dtype(number: int, where: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(number))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} has the unknown element type {number}") from error
    if dtype.kind not in _KINDS and dtype != _BFLOAT16:
        raise ValueError(f"{where} is {dtype}, not numbers that can be computed with")
    return dtype
