"""Rewrite a file for TensorRT's parser where the parser cannot take it as it is."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function_check import check_functions
from pom_export.graph.function_names import refuse_overloads
from pom_export.graph.nodes import is_aggregation
from pom_export.graph.unfolding import aggregations_of, all_nodes, unfolded


def inlined(path: Path, model: onnx.ModelProto) -> bytes:
    """Return a model with its functions inlined; external weights stay outside.

    TensorRT's parser cannot do this, as it prefers the plugin if the plugin has been loaded.

    Args:
        path: path of the file, for messages.
        model: its contents.

    Raises:
        InputError: the file lacks an aggregation's function or has several with the same name, or a function does not
            compute what its node asks for.
    """
    refuse_overloads(path, model.functions, "TensorRT")
    unknown = check_functions(path, model)
    if unknown:
        raise InputError(f"{path}: {unknown[0]}", "Export it again, or build with `use_plugin=True`")
    flat = onnx.inliner.inline_local_functions(model)
    left = sorted({node.op_type for node in all_nodes(flat.graph) if node.domain == contract.DOMAIN})
    if left:
        raise InputError(
            f"{path} lacks the functions of {', '.join(left)}", "Export it again, or build with `use_plugin=True`"
        )
    return flat.SerializeToString()


def for_plugin(model: onnx.ModelProto) -> bytes | None:
    """Return a model in which only the plugin can compute aggregations; None if the model already is one.

    The parser only looks for plugins in the main graph; in other tools' functions and in branches, it uses our
    function. It also distinguishes functions by name alone, ignoring their domain.

    Args:
        model: the file's contents, which must not be used afterwards, as functions may be removed.
    """
    whole = unfolded(model)
    if whole is model and len(aggregations_of(model.graph)) == sum(map(is_aggregation, model.graph.node)):
        return None
    whole.ClearField("functions")
    return whole.SerializeToString()
