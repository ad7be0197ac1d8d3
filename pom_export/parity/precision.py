"""Choose the type whose tolerance applies to a file, from its graph and not from its claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.exported_model import PRECISIONS, ExportedModel, presents
from pom_export.graph.loading import load_graph
from pom_export.graph.module_names import is_inside
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from torch import nn

    from pom_export.graph.program import Program
    from pom_export.graph.rounding import Rounding

Array = npt.NDArray[Any]
_DTYPE = "dtype"
# How many of a parameter's numbers are searched for in a file.
_SAMPLE = 4096
_MATRIX_RANK = 2
# Enough numbers that they are not all in another table by chance; and how often a table's rows are repeated at most.
_ENOUGH, _MOST_OF_TABLES = 16, 64


def judged_precision(model: ExportedModel, matrix_values: int | None = None) -> tuple[str, list[str]]:
    """Return the type whose tolerance applies, and notes.

    The graph's weights decide: half precision's bound only applies to a graph whose products are in half precision. If
    the metadata disagrees, the stricter of the two types applies.

    Args:
        model: the file.
        matrix_values: number of values in the reference's weight matrices. At least half as many must be in half
            precision, and at most half as many in float32. None: the reference consists of outputs only.
    """
    found, claimed = model.precision, model.properties.get(_DTYPE, "")
    notes = []
    if claimed != found == PRECISIONS[0] and _is_widened(model, claimed, matrix_values):
        return claimed, [f"another tool has its weights in float32, which are {claimed} numbers: judged as {claimed}"]
    if matrix_values is not None and found != PRECISIONS[0]:
        single = model.weight_types.get("float32", 0) + model.weight_types.get("float64", 0)
        half = sum(model.weight_types.get(precision, 0) for precision in PRECISIONS[1:])
        if 2 * half < matrix_values or 2 * single > matrix_values:
            notes.append(f"{half} of its weights' numbers are {found}, out of the reference's {matrix_values}")
            found = PRECISIONS[0]
    if claimed and claimed != found:
        stricter = min(claimed, found, key=PRECISIONS.index)
        notes.append(f"the file says {claimed}, but its weights are {found}: judged as {stricter}")
        return stricter, notes
    return found, notes


def _is_widened(model: ExportedModel, claimed: str, matrix_values: int | None) -> bool:
    """Return whether a float32 graph is a half-precision one that a tool, such as ONNX Runtime, has converted.

    If so, all of its outputs still have the half type, and most of its matrices have values that the half type can
    represent: at least half as many values as the reference's matrices, if known, since tables may be in float32.
    """
    if claimed not in PRECISIONS[1:]:
        return False
    kept = presents(model.inputs)
    floats = [spec for spec in model.outputs if spec.dtype.kind not in "biu" and spec.name not in kept]
    outputs = {spec.dtype.name for spec in floats}
    if outputs != {claimed}:
        return False
    half = ml_dtypes.bfloat16 if claimed == "bfloat16" else np.float16
    values = load_graph(model.path).graph.initializers.values()
    matrices = [tensor.numpy() for tensor in (value.const_value for value in values) if _is_matrix(tensor)]
    with np.errstate(over="ignore"):
        held = [array.size for array in matrices if np.array_equal(array.astype(half).astype(np.float32), array)]
    return bool(held) and 2 * sum(held) >= (matrix_values or sum(array.size for array in matrices))


def _is_matrix(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) >= _MATRIX_RANK


def rounding_of(model: ExportedModel, program: Program, precision: str) -> Rounding | None:
    """Return what a file rounds of the program that it was exported from; None if it is judged as float32.

    The file names the modules that it computes in float32. If it does not do so, then it rounds more than the program,
    and differs from it.

    Args:
        model: the file.
        program: the program.
        precision: the type that the file is judged by.
    """
    if precision == PRECISIONS[0]:
        return None
    from pom_export.graph.rounding import Rounding

    kept = [f"{program.prefix}.{name}" for name in model.keep_float32]
    return Rounding(precision, _kept_in_single(model, program.module, kept), kept, model.sizes_folded)


def _kept_in_single(model: ExportedModel, module: nn.Module, kept: Sequence[str]) -> set[str]:
    """Return the names of a module's parameters and buffers that a half-precision file stores in float32.

    Beside the modules that it keeps in float32, nothing else about a file affects how large its rounding errors are
    taken to be. A file can thus make weights count as exact instead of rounded, but can hide nothing larger than a
    rounding error. Parameters are found by their values, since passes and other tools rename, split and transpose them.
    A buffer's table, or part of it, may be stored in both types, for two uses; it then counts as rounded outside of our
    op. So does a parameter of a module kept in float32 outside of that module.

    Args:
        model: the file.
        module: the module that it was exported from.
        kept: names of modules that the file computes in float32.
    """
    single, half = _constants(model)
    exact = {name for name, tensor in module.named_parameters() if _holds(single, _sample(to_numpy(tensor)))}
    exact.difference_update(_used_outside(module, kept, half))
    for name, tensor in module.named_buffers():
        array = to_numpy(tensor)
        if array.dtype.kind == "f" and _holds(single, _sample(array)):
            rounded = array.astype(ml_dtypes.bfloat16 if model.precision == "bfloat16" else np.float16)
            if not any(_is_part(each.astype(np.float32), rounded.astype(np.float32)) for each in half):
                exact.add(name)
    return exact


def _used_outside(module: nn.Module, kept: Sequence[str], half: Sequence[Array]) -> Iterator[str]:
    """Yield the names of parameters inside of some modules that a file stores in half precision too.

    Args:
        module: the module that the file was exported from.
        kept: names of the modules, which a file computes in float32.
        half: the file's half-precision weights.
    """
    inside = {id(each) for name, each in module.named_parameters(remove_duplicate=False) if is_inside(name, kept)}
    numbers = np.unique(np.concatenate([each.reshape(-1).astype(np.float32) for each in half])) if half else None
    for name, parameter in module.named_parameters():
        if id(parameter) in inside and numbers is not None:
            with np.errstate(over="ignore"):
                rounded = _sample(to_numpy(parameter)).astype(half[0].dtype).astype(np.float32)
            if _holds(numbers, rounded):
                yield name


def _constants(model: ExportedModel) -> tuple[Array, list[Array]]:
    """Return the distinct numbers of a file's float32 weights, sorted, and its half-precision weights."""
    single, half = [np.zeros(0, np.float32)], []
    graph = load_graph(model.path).graph
    tensors = [value.const_value for value in graph.initializers.values()]
    tensors += [
        node.attributes["value"].as_tensor()
        for node in graph
        if node.op_type == "Constant" and "value" in node.attributes
    ]
    for tensor in tensors:
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT:
            single.append(np.unique(tensor.numpy()))
        elif tensor is not None and tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
            half.append(tensor.numpy())
    return np.unique(np.concatenate(single)), half


def _is_part(weight: Array, table: Array) -> bool:
    """Return whether a weight consists of columns of a table's first rows, or only of numbers from the table."""
    if weight.ndim == table.ndim == _MATRIX_RANK and 1 < len(weight) <= len(table):
        columns = {column.tobytes() for column in table[: len(weight)].T}
        if all(column.tobytes() in columns for column in weight.T):
            return True
    return weight.size >= _ENOUGH and weight.size <= _MOST_OF_TABLES * table.size and bool(np.isin(weight, table).all())


def _sample(array: Array) -> Array:
    flat = array.reshape(-1)
    return flat[:: max(flat.size // _SAMPLE, 1)].astype(np.float32)


def _holds(numbers: Array, sample: Array) -> bool:
    return bool(sample.size) and bool(np.isin(sample, numbers).all())
