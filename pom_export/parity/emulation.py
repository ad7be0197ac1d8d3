"""Run half-precision models in ONNX Runtime on the CPU, with the rounding of a device that computes in half precision.

The CPU provider has no bfloat16 products, and removes the casts between float16 nodes, which would hide values outside
float16's range.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.files import scratch_folder
from pom_export.graph.loading import load_graph
from pom_export.graph.nodes import cast_node, is_aggregation
from pom_export.graph.saving import save_graph
from pom_export.graph.schema import register_schema
from pom_export.runtime.runners import Arrays, OnnxRuntimeRunner
from pom_export.runtime.session import inference_session

_WIDE = ir.DataType.FLOAT
_DOMAIN, _OURS = contract.DOMAIN, (*contract.OP_NAMES, *contract.GATED_OP_NAMES)
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class EmulatedRunner(OnnxRuntimeRunner):
    """Runs a half-precision model in float32, with or without rounding to half, in our kernels or in the function.

    Args:
        name: name of the runner.
        model: path of the file.
        kernels: whether to register our library.
        rounds: whether to round values as a device that computes in half precision does; if not, only the weights are
            rounded.
    """

    def __init__(self, name: str, model: Path, *, kernels: bool, rounds: bool = True) -> None:
        super().__init__(name, lambda options: _session(model, kernels, rounds, options))

    def infer(self, feed: Arrays) -> Arrays:
        """Return the outputs by name, in float32."""
        wide = {
            name: array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
            for name, array in feed.items()
        }
        return super().infer(wide)


def _session(model: Path, kernels: bool, rounds: bool, options: Any) -> Any:
    with scratch_folder() as folder:
        emulated = folder / "emulated.onnx"
        (save_emulation if rounds else save_unrounded)(model, emulated)
        return inference_session(emulated, kernels=kernels, session_options=options)


def save_emulation(model: str | os.PathLike[str], path: Path) -> None:
    """Save a model whose standard ops compute in float32 instead of half precision, rounding every result to half.

    This is what hardware does, which accumulates products in float32. Nodes of our ops accept half types and are
    unchanged. Inputs and outputs are float32, which NumPy supports, with values of the half type.
    """
    emulated = loaded_whole(model)
    _unfold(emulated)
    graph = emulated.graph
    if any(node.graph is not graph for node in ir.traversal.RecursiveGraphIterator(graph)):
        _infer_types(emulated)
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    for node in nodes:
        branches = any(attribute.type in _GRAPHS for attribute in node.attributes.values())
        if not branches and not is_aggregation(node) and node.op_type != "Cast" and node.graph is not None:
            _widen(node.graph, node)
    first = graph[0]
    for value in graph.inputs:
        if value.dtype in _HALVES:
            graph.insert_before(first, _put_behind(value, value.dtype))
            value.type = ir.TensorType(_WIDE)
    for index, value in enumerate(graph.outputs):
        if value.dtype in _HALVES:
            graph.append(cast := cast_node(value, _WIDE))
            graph.outputs[index], name = cast.outputs[0], value.name
            value.name, cast.outputs[0].name = f"{name}_narrow", name
    if any(node.graph is not graph for node in nodes):
        from onnx_ir.passes import common

        common.NameFixPass()(emulated)  # a name in a branch must not exist outside of it too
    save_graph(emulated, path)


def loaded_whole(path: str | os.PathLike[str]) -> ir.Model:
    """Load a model with its weights, which are stored relative to the model's folder."""
    return ir.external_data.load_to_model(load_graph(path))


def _unfold(model: ir.Model) -> None:
    """Inline all functions except those of our ops: their bodies are standard ops."""
    from onnx_ir.passes import common

    others = {
        key for key, function in model.functions.items() if function.name not in _OURS or function.domain != _DOMAIN
    }
    if others:
        common.InlinePass(criteria=lambda function: function.identifier() in others)(model)
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def _infer_types(model: ir.Model) -> None:
    """Infer the types of values in branches, where few tools store them."""
    from onnx_ir.passes import common

    register_schema()
    common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Cast a node's inputs to float32, and its outputs back."""
    if not any(value is not None and value.dtype in _HALVES for value in node.inputs):
        return  # an attribute determines the type, such as that of a constant
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype in _HALVES:
            cast = cast_node(value, _WIDE)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype in _HALVES:
            graph.insert_after(node, cast := _put_behind(value, value.dtype))
            value.name, cast.outputs[0].name = f"{value.name}_unrounded", value.name
            value.type = ir.TensorType(_WIDE)


def _put_behind(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Cast a value, and make all of its users take the result of the cast."""
    cast = cast_node(value, dtype)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    return cast


def save_unrounded(model: str | os.PathLike[str], path: Path) -> None:
    """Save a half-precision model in float32: the weights have the half type's values, and nothing else is rounded.

    Such a graph computes with float32's precision, so that rounding cannot hide a fault.
    """
    wide = loaded_whole(model)
    graphs = [wide.graph, *(function.graph for function in wide.functions.values())]
    for graph in graphs:
        nodes = list(ir.traversal.RecursiveGraphIterator(graph))
        inner = dict.fromkeys([graph, *(node.graph for node in nodes)])
        for each in filter(None, inner):
            for value in (*each.inputs, *each.initializers.values()):
                _unround_value(value)
        for node in nodes:
            for value in node.outputs:
                _unround_value(value)
            _unround_attributes(node)
    save_graph(wide, path)


def _unround_value(value: ir.Value) -> None:
    if value.dtype in _HALVES:
        value.type = ir.TensorType(_WIDE)
    if value.const_value is not None and value.const_value.dtype in _HALVES:
        value.const_value = _widened(value.const_value)


def _unround_attributes(node: ir.Node) -> None:
    """Change half types in a node's attributes, the target type of a Cast or a constant, to float32."""
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.INT and name in {"to", "dtype"} and attribute.as_int() in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, _WIDE)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(attribute.as_tensor()))


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float32), _WIDE, name=tensor.name)
