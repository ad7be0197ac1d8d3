"""The ops' functions in an engine instead of the plugin."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.inliner

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.function_check import check_functions
from pom_export.graph.function_names import refuse_overloads


def inlined(path: Path) -> bytes:
    """Return a model with its functions put in place of the nodes that call them; external weights stay outside.

    TensorRT's parser would not do: it prefers the plugin, wherever that was loaded before.

    Raises:
        InputError: the file lacks the function of an aggregation, holds several of one name, or a function is not what
            its node asks for.
    """
    model = onnx.load(path, format="protobuf", load_external_data=False)
    refuse_overloads(path, model.functions, "TensorRT")
    unknown = check_functions(path, model)
    if unknown:
        raise InputError(f"{path}: {unknown[0]}", "Export it again, or build without --no-plugin")
    model = onnx.inliner.inline_local_functions(model)
    left = sorted({node.op_type for node in model.graph.node if node.domain == contract.DOMAIN})
    if left:
        raise InputError(
            f"{path} lacks the function of {', '.join(left)}", "Export it again, or build without --no-plugin"
        )
    return model.SerializeToString()
