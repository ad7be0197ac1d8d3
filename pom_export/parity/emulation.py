"""Run half-precision models in ONNX Runtime on the CPU with the roundings of a device that computes in half.

The CPU's provider has no bfloat16 products, and takes the casts between float16 nodes away: what leaves float16's range
would not be seen.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from pom_export.files import scratch_folder
from pom_export.graph.nodes import cast_node, is_aggregation
from pom_export.graph.saving import save_graph
from pom_export.runtime.runners import Arrays, OnnxRuntimeRunner
from pom_export.runtime.session import inference_session

_WIDE = ir.DataType.FLOAT
_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class EmulatedRunner(OnnxRuntimeRunner):
    """Runs the emulation of a half-precision model, with our kernels or with the op's function.

    Args:
        name: of the runner.
        model: path of the file.
        kernels: whether our library is registered.
    """

    def __init__(self, name: str, model: Path, *, kernels: bool) -> None:
        super().__init__(name, lambda options: _session(model, kernels, options))

    def infer(self, feed: Arrays) -> Arrays:
        """Return the outputs by name, in float32."""
        wide = {
            name: array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array
            for name, array in feed.items()
        }
        return super().infer(wide)


def _session(model: Path, kernels: bool, options: Any) -> Any:
    with scratch_folder() as folder:
        emulated = folder / "emulated.onnx"
        save_emulation(model, emulated)
        return inference_session(emulated, kernels=kernels, session_options=options)


def save_emulation(model: str | os.PathLike[str], path: Path) -> None:
    """Save a model whose standard ops compute in float32 what they did in half, and round every result to it.

    That is what hardware does, whose products sum in float32. Nodes of our ops take half types as they are, and stay.
    Inputs and outputs are float32, which numpy knows; they hold the half type's values.
    """
    emulated = ir.load(os.fspath(model), format="protobuf")
    graph = emulated.graph
    for node in list(graph):
        if not is_aggregation(node) and node.op_type != "Cast":
            _widen(graph, node)
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
    save_graph(emulated, path)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Cast a node's inputs to float32, and its outputs back."""
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
    """Return a Cast of a value that all its users take instead of it."""
    cast = cast_node(value, dtype)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    return cast
