"""The op's ONNX schema, with type and shape inference, registered with the `onnx` package."""

from __future__ import annotations

import atexit
from functools import cache
from typing import Any, NoReturn

import onnx
from onnx.defs import OpSchema

from pom_export import contract

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
_TYPE_CONSTRAINTS = [
    ("T", _FLOATS, "type of the tokens"),
    ("C", _FLOATS, "float32, or the type of the tokens"),
    ("M", ["tensor(bool)", *_FLOATS], "bool, or the type of the tokens"),
    ("R", _FLOATS, "float32, or the type of the tokens"),
]
_INPUTS = [
    OpSchema.FormalParameter("x", "T", "(B, N, C): projected context tokens, before the activation"),
    OpSchema.FormalParameter("coefficients", "C", "(C, K): coefficient of the powers 1 to K of each channel"),
    *(
        OpSchema.FormalParameter(name, kind, meaning, param_option=OpSchema.FormalParameterOption.Optional)
        for name, kind, meaning in (
            ("mask", "M", "(B or 1, N): token weights"),
            ("cos", "R", "(N, C/2) or (B, N, C/2): cosines of the rotation"),
            ("sin", "R", "of cos's shape: sines of the rotation"),
            ("past_state", "tensor(float)", "(B, 2, C): sum of the features so far, and what it has lost to rounding"),
            ("past_length", "tensor(int64)", "(B): number of tokens in the past"),
        )
    ),
]
_OUTPUTS = [
    OpSchema.FormalParameter("y", "T", "(B, 1, C) for mode mean, else (B, N, C)"),
    *(
        OpSchema.FormalParameter(name, kind, "as past", param_option=OpSchema.FormalParameterOption.Optional)
        for name, kind in zip(contract.STATE_OUTPUTS, ("tensor(float)", "tensor(int64)"), strict=True)
    ),
]
_DEFAULTS: dict[str, Any] = {
    "form": contract.POWER,
    "degree": contract.DEFAULT_DEGREE,
    "rotary_blocks": contract.DEFAULT_ROTARY_BLOCKS,
    "epsilon": contract.DEFAULT_EPSILON,
    "stateful": contract.DEFAULT_STATEFUL,
    "plugin_version": contract.PLUGIN_VERSION,
    "plugin_namespace": contract.PLUGIN_NAMESPACE,
}
_ATTRIBUTE_DOCS = {
    "form": 'polynomial: "power", or "product" of the GELU of x\'s chunks',
    "degree": 'number of chunks of form "product", else 0',
    "mode": '"mean", "causal" (prefix mean) or "features" (no aggregation)',
    "rotary_blocks": "number of channel blocks that are rotated independently: 1 or 2",
    "epsilon": "added to a masked sum of weights",
    "stateful": "1 if the past is an input and the present an output",
    "plugin_version": "for TensorRT's parser",
    "plugin_namespace": "for TensorRT's parser",
}


_CHECKED = ("form", "degree", "mode", "rotary_blocks", "epsilon", "stateful")
# A placeholder has rank 1.
_RANKS = {
    "x": (3,),
    "coefficients": (1, 2),
    "mask": (1, 2),
    "cos": (1, 2, 3),
    "sin": (1, 2, 3),
    "past_state": (3,),
    "past_length": (1,),
}


def attributes(
    mode: str,
    epsilon: float = contract.DEFAULT_EPSILON,
    *,
    degree: int = contract.DEFAULT_DEGREE,
    rotary_blocks: int = contract.DEFAULT_ROTARY_BLOCKS,
    stateful: bool = False,
) -> dict[str, Any]:
    """Return every attribute of a node, in the contract's order; TensorRT warns about each missing one.

    A nonzero degree selects form "product".
    """
    form = contract.PRODUCT if degree else contract.POWER
    values = {**_DEFAULTS, "form": form, "degree": degree, "mode": mode, "epsilon": float(epsilon)}
    values |= {"rotary_blocks": rotary_blocks, "stateful": int(stateful)}
    return {name: values[name] for name in contract.ATTRIBUTES}


def _schema_attribute(name: str) -> OpSchema.Attribute:
    if name in _DEFAULTS:
        return OpSchema.Attribute(name, onnx.helper.make_attribute(name, _DEFAULTS[name]), _ATTRIBUTE_DOCS[name])
    return OpSchema.Attribute(name, OpSchema.AttrType.STRING, _ATTRIBUTE_DOCS[name], required=True)


def _fail(text: str) -> NoReturn:
    raise onnx.shape_inference.InferenceError(f"{contract.DOMAIN}::{contract.OP_NAME}: {text}")


def _read_attributes(context: Any) -> dict[str, Any]:
    """Return a node's attributes, with defaults for missing ones; one of the wrong type does not count as missing."""
    values = dict(_DEFAULTS)
    for name in contract.ATTRIBUTES:
        attribute = context.get_attribute(name)
        if attribute is None:
            continue
        expected = onnx.helper.make_attribute(name, _DEFAULTS.get(name, "")).type
        if attribute.type != expected:
            kind = onnx.AttributeProto.AttributeType.Name
            _fail(f"{name} must be of type {kind(expected)}, got {kind(attribute.type)}")
        value = onnx.helper.get_attribute_value(attribute)
        values[name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return values


def _check_node(context: Any) -> str:
    """Check a node's attributes and the ranks of its inputs, as far as known, and return its mode."""
    values = _read_attributes(context)
    if "mode" not in values:
        _fail("the attribute mode is missing")
    try:
        contract.check_attributes(**{name: values[name] for name in _CHECKED})
    except ValueError as error:
        _fail(str(error))
    for index in range(context.get_num_inputs()):
        kind, name = context.get_input_type(index), contract.INPUTS[index]
        if kind is None or not kind.HasField("tensor_type") or not kind.tensor_type.HasField("shape"):
            continue
        rank = len(kind.tensor_type.shape.dim)
        if rank not in _RANKS[name]:
            _fail(f"{name} must have {' or '.join(map(str, _RANKS[name]))} dimensions, got {rank}")
    mode: str = values["mode"]
    return mode


def _infer(context: Any) -> None:
    """Give y the type of x, and a shape with one token for mode "mean"; the present is like the past."""
    mode = _check_node(context)
    x = context.get_input_type(0)
    if x is None or not x.HasField("tensor_type"):
        return
    y = onnx.TypeProto()
    y.CopyFrom(x)
    if mode == "mean" and y.tensor_type.HasField("shape"):
        y.tensor_type.shape.dim[1].Clear()
        y.tensor_type.shape.dim[1].dim_value = 1
    context.set_output_type(0, y)
    for output, name in enumerate(contract.STATE_INPUTS, start=1):
        index = contract.INPUTS.index(name)
        past = context.get_input_type(index) if index < context.get_num_inputs() else None
        if output < context.get_num_outputs() and past is not None:
            context.set_output_type(output, past)


def _make_schema(inputs: int, outputs: int) -> OpSchema:
    schema = OpSchema(
        contract.OP_NAME,
        contract.DOMAIN,
        contract.OP_VERSION,
        contract.__doc__ or "",
        inputs=_INPUTS[:inputs],
        outputs=_OUTPUTS[:outputs],
        type_constraints=_TYPE_CONSTRAINTS,
        attributes=[_schema_attribute(name) for name in contract.ATTRIBUTES],
    )
    schema.set_type_and_shape_inference_function(_infer)
    return schema


@cache
def register_schema() -> OpSchema:
    """Register the op's schema with `onnx.defs`, once per process, and return it."""
    schema = _make_schema(len(_INPUTS), len(_OUTPUTS))
    onnx.defs.register_schema(schema)
    # onnx 1.19 would release the inference function after Python's end, which crashes the process or never returns.
    atexit.register(onnx.defs.deregister_schema, contract.OP_NAME, contract.OP_VERSION, contract.DOMAIN)
    return schema


@cache
def stateless_schema() -> OpSchema:
    """Return the schema of a stateless node. It is not registered; tracing gives a node all outputs of a schema."""
    return _make_schema(len(_INPUTS) - len(contract.STATE_INPUTS), len(_OUTPUTS) - len(contract.STATE_OUTPUTS))
