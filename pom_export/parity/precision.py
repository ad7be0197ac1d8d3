"""Choose the type whose tolerance applies to a file, from its graph and not from its claims."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.graph.exported_model import PRECISIONS, ExportedModel, is_past, present_name
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from torch import nn

Array = npt.NDArray[Any]
_DTYPE = "dtype"
# Numbers of a parameter that are looked for among a file's.
_SAMPLE = 4096
_MATRIX_RANK = 2
# So many numbers are not all in another table by chance; and rows of a table are repeated so often at most.
_ENOUGH, _MOST_OF_TABLES = 16, 64


def judged_precision(model: ExportedModel, matrix_values: int | None = None) -> tuple[str, list[str]]:
    """Return the type whose tolerance applies, and what is to be noted.

    The graph's weights decide: half precision's bound is for a graph whose products are in half. A claim to the
    contrary makes it stricter at most.

    Args:
        model: the file.
        matrix_values: how many numbers the reference's weight matrices have: so many, by half at least, must be in
            half, and fewer than half of that in float32; None: there is no reference but outputs.
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
    """Return whether a float32 graph is a half-precision one that a tool, such as ONNX Runtime, has widened.

    Then its outputs, all of them, are still of the half type, and so are the numbers of most matrices: of as many as
    the reference has, where that is known, since tables may be in float32.
    """
    if claimed not in PRECISIONS[1:]:
        return False
    presents = {present_name(spec.name) for spec in model.inputs if is_past(spec.name)}
    floats = [spec for spec in model.outputs if spec.dtype.kind not in "biu" and spec.name not in presents]
    outputs = {spec.dtype.name for spec in floats}
    if outputs != {claimed}:
        return False
    half = ml_dtypes.bfloat16 if claimed == "bfloat16" else np.float16
    values = ir.load(model.path, format="protobuf").graph.initializers.values()
    matrices = [tensor.numpy() for tensor in (value.const_value for value in values) if _is_matrix(tensor)]
    with np.errstate(over="ignore"):
        held = [array.size for array in matrices if np.array_equal(array.astype(half).astype(np.float32), array)]
    return bool(held) and 2 * sum(held) >= (matrix_values or sum(array.size for array in matrices))


def _is_matrix(tensor: ir.TensorProtocol | None) -> TypeGuard[ir.TensorProtocol]:
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) >= _MATRIX_RANK


def kept_in_single(model: ExportedModel, module: nn.Module) -> set[str]:
    """Return the names of a module's parameters and buffers that a half-precision file holds in float32.

    That is all that is looked up in a file to say how far half precision takes its outputs: it may tell exact weights
    from rounded ones, so no more than a rounding hides here. Parameters are found by their values, since passes and
    other tools rename, cut and transpose them. A buffer's table, or a part of it, may be there in both types, for two
    uses: it is then taken to be rounded outside of our op.

    Args:
        model: the file.
        module: what it was exported from.
    """
    single, half = _constants(model)
    exact = {name for name, tensor in module.named_parameters() if _holds(single, _sample(to_numpy(tensor)))}
    for name, tensor in module.named_buffers():
        array = to_numpy(tensor)
        if array.dtype.kind == "f" and _holds(single, _sample(array)):
            rounded = array.astype(ml_dtypes.bfloat16 if model.precision == "bfloat16" else np.float16)
            if not any(_is_part(each.astype(np.float32), rounded.astype(np.float32)) for each in half):
                exact.add(name)
    return exact


def _constants(model: ExportedModel) -> tuple[Array, list[Array]]:
    """Return the numbers that a file's weights have in float32, sorted, and its weights in half."""
    single, half = [np.zeros(0, np.float32)], []
    graph = ir.load(model.path, format="protobuf").graph
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
    """Return whether a weight holds columns of a table's first rows, or nothing but numbers of it."""
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
