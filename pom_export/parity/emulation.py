"""Run bfloat16 models in ONNX Runtime on the CPU, which has no bfloat16 products, with the same roundings."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from polygraphy.backend.onnxrt import OnnxrtRunner
from polygraphy.common import TensorMetadata

from pom_export import contract
from pom_export.runtime.session import inference_session

_WIDE, _NARROW = ir.DataType.FLOAT, ir.DataType.BFLOAT16
_EXTERNAL_DATA_BYTES = 1_500_000_000


class EmulatedRunner(OnnxrtRunner):  # type: ignore[misc]  # Polygraphy is untyped
    """Runs the emulation of a bfloat16 model, with our kernels or with the op's function.

    Args:
        model: path of the bfloat16 file.
        metadata: of its inputs.
        name: of the runner.
        kernels: whether our library is registered.
    """

    def __init__(self, model: Path, metadata: TensorMetadata, name: str, *, kernels: bool) -> None:
        super().__init__(lambda: _session(model, kernels), name=name)
        self._metadata = metadata

    def get_input_metadata_impl(self) -> TensorMetadata:  # noqa: D102 (Polygraphy's)
        return self._metadata

    def infer_impl(self, feed_dict: dict[str, Any]) -> OrderedDict[str, Any]:  # noqa: D102 (Polygraphy's)
        feed = {
            name: array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
            for name, array in feed_dict.items()
        }
        return super().infer_impl(feed)


def _session(model: Path, kernels: bool) -> Any:
    with TemporaryDirectory() as folder:
        save_emulation(model, Path(folder) / model.name)
        return inference_session(Path(folder) / model.name, kernels=kernels)


def save_emulation(model: str | os.PathLike[str], path: Path) -> None:
    """Save a model whose standard ops compute in float32 what they did in bfloat16, and round every result to it.

    That is what hardware does, whose products sum in float32. Nodes of our ops, which take bfloat16 as it is, stay.
    Inputs and outputs are float32, which numpy knows; they hold bfloat16's values.
    """
    emulated = ir.load(os.fspath(model))
    graph = emulated.graph
    for node in list(graph):
        if node.domain != contract.DOMAIN and node.op_type != "Cast":
            _widen(graph, node)
    first = graph[0]
    for value in graph.inputs:
        if value.dtype == _NARROW:
            graph.insert_before(first, _put_behind(value, _NARROW))
            value.type = ir.TensorType(_WIDE)
    for index, value in enumerate(graph.outputs):
        if value.dtype == _NARROW:
            graph.append(cast := _cast(value, _WIDE))
            graph.outputs[index], name = cast.outputs[0], value.name
            value.name, cast.outputs[0].name = f"{name}_narrow", name
    size = sum(value.const_value.nbytes for value in graph.initializers.values() if value.const_value is not None)
    ir.save(emulated, path, external_data=f"{path.name}.data" if size > _EXTERNAL_DATA_BYTES else None)


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    """Cast a node's inputs to float32, and its outputs back."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == _NARROW:
            cast = _cast(value, _WIDE)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    for value in node.outputs:
        if value.dtype == _NARROW:
            graph.insert_after(node, cast := _put_behind(value, _NARROW))
            value.name, cast.outputs[0].name = f"{value.name}_unrounded", value.name
            value.type = ir.TensorType(_WIDE)


def _put_behind(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """Return a Cast of a value that all its users take instead of it."""
    cast = _cast(value, dtype)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0], replace_graph_outputs=True)
    cast.replace_input_with(0, value)
    return cast


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.AttrInt64("to", dtype)})
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node
