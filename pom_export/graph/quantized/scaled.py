"""Write products as TensorRT reads them: QuantizeLinear and DequantizeLinear around a product of floats."""

from __future__ import annotations

from typing import Any, Final

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from pom_export.errors import InputError
from pom_export.graph.nodes import add_constant
from pom_export.graph.opsets import raise_opset
from pom_export.graph.quantized.block_weights import FLOAT8, QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct, constant_of
from pom_export.graph.quantized.writing import replace_product

# The opsets that brought int4 and scales per block, and scales of float16 and values of float8.
_INT4_OPSET: Final = 21
_SHORT_OPSET: Final = 19
# The largest relative error of a scale in float16: it moves the largest int8 by a quarter of a step.
_LOST: Final = 2.0**-9
_TYPES: Final = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4, "fp8": ir.DataType.FLOAT8E4M3FN}


def write_scaled_product(
    model: ir.Model,
    product: FloatProduct,
    weight: QuantizedWeight,
    activation_scale: float | None = None,
    *,
    shared: bool = False,
) -> None:
    """Make a product one of dequantized values: MatMul(DQ(Q(x)), DQ(weight)), or MatMul(x, DQ(weight)).

    A runtime with a kernel for it multiplies the small values; any other computes what stands there.

    Args:
        model: the graph; its opset is raised where the form needs that.
        product: one of its products, of float32 or float16: scales get its type.
        weight: its quantized weight.
        activation_scale: the step between activations of type int8, or what activations of type fp8 are divided by;
            activations are of the weight's type. None: they stay as they are.
        shared: whether products of the same activations share one Q/DQ pair, if their scale is the same too. TensorRT
            then makes them one product; ONNX Runtime computes all in float but one. Otherwise, each has a pair of its
            own, with scales one unit in the last place apart, because ONNX Runtime would merge equal pairs.

    Raises:
        InputError: a scale is not positive, or not to be held in float16; or see `raise_opset`.
    """
    assert activation_scale is None or weight.type != "int4"
    graph, dtype = model.graph, product.initializer.dtype
    assert dtype is not None
    blocked = weight.block < len(weight.values)
    if blocked or weight.type == "int4":
        raise_opset(model, _INT4_OPSET)
    elif dtype != ir.DataType.FLOAT or weight.type == "fp8":
        raise_opset(model, _SHORT_OPSET)
    name = f"{product.initializer.name}.{weight.type}"
    values = add_constant(graph, name, *_stored(weight))
    scales = weight.scales if blocked else weight.scales[0]
    narrow = add_constant(graph, f"{product.initializer.name}.scales", _scales(scales, product), dtype)
    attributes = {"axis": 0, "block_size": weight.block} if blocked else {"axis": 1}
    restored = ir.node("DequantizeLinear", [values, narrow], attributes, name=f"{product.name}.weight")
    restored.outputs[0].shape, restored.outputs[0].type = ir.Shape(weight.values.shape), ir.TensorType(dtype)
    given = product.node.inputs[0]
    assert given is not None
    added: list[ir.Node] = []
    if activation_scale is not None:
        given, added = _rounded(model, product, weight.type, activation_scale, shared)
    replace_product(model, product, [*added, restored, ir.node("MatMul", [given, restored.outputs[0]])])


def _rounded(
    model: ir.Model, product: FloatProduct, kind: str, scale: float, shared: bool
) -> tuple[ir.Value, list[ir.Node]]:
    """Return a product's activations, rounded to a type and restored, and the nodes to add for that."""
    graph, given, dtype = model.graph, product.node.inputs[0], product.initializer.dtype
    assert given is not None
    assert dtype is not None
    step, small = _scales(np.array(scale, np.float32), product), _TYPES[kind]
    for pair in [user for user, _ in given.uses() if user.op_type == "QuantizeLinear"]:
        if shared and pair.outputs[0].dtype == small and constant_of(pair.inputs[1]) == step:
            ((back, _),) = pair.outputs[0].uses()
            return back.outputs[0], []
        step = np.nextafter(step, step.dtype.type(np.inf))
    size = add_constant(graph, f"{product.name}.scale", step)
    # The zero point, which says the type.
    zero = add_constant(graph, f"{product.name}.zero", np.zeros((), small.numpy()), small)
    rounding = ir.node("QuantizeLinear", [given, size, zero], name=f"{product.name}.rounding")
    back = ir.node("DequantizeLinear", [rounding.outputs[0], size, zero], name=f"{product.name}.restored")
    for node, type_ in ((rounding, small), (back, dtype)):
        node.outputs[0].shape, node.outputs[0].type = given.shape, ir.TensorType(type_)
    return back.outputs[0], [rounding, back]


def _stored(weight: QuantizedWeight) -> tuple[npt.NDArray[Any], ir.DataType]:
    values = weight.values if weight.values.dtype == FLOAT8 else weight.values.astype(np.int8)
    return (values.astype(ml_dtypes.int4) if weight.type == "int4" else values), _TYPES[weight.type]


def _scales(scales: npt.NDArray[Any], product: FloatProduct) -> npt.NDArray[Any]:
    """Return scales in a product's type."""
    dtype = product.initializer.dtype
    assert dtype is not None
    with np.errstate(over="ignore", under="ignore"):
        narrow = scales.astype(dtype.numpy())
    held = np.abs(narrow.astype(np.float32) - scales) <= _LOST * scales
    if not (held & (narrow > 0)).all():
        wrong = scales[~held | (narrow <= 0)].flat[0]
        raise InputError(
            f"{product.name} needs a scale of {wrong:.3g}, which {dtype.name.lower()} does not hold closely enough",
            f"Keep it in float: `keep_float32=[{product.name!r}]`",
        )
    return narrow
