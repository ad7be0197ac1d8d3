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
    """Return a model with its functions put in place of the nodes that call them; external weights stay outside.

    TensorRT's parser would not do: it prefers the plugin, wherever that was loaded before.

    Args:
        path: of the file, for messages.
        model: what it holds.

    Raises:
        InputError: the file lacks the function of an aggregation, holds several of one name, or a function is not what
            its node asks for.
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
    """Return a model in which nothing but the plugin can compute an aggregation; None: it is such a model already.

    The parser looks for plugins in the main graph alone: in functions of others and in branches it takes our function.
    And it tells functions apart by name alone, whoever's they are.

    Args:
        model: what the file holds, which is not used afterwards: its functions may be taken out.
    """
    whole = unfolded(model)
    if whole is model and len(aggregations_of(model.graph)) == sum(map(is_aggregation, model.graph.node)):
        return None
    whole.ClearField("functions")
    return whole.SerializeToString()
