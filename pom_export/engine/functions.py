"""The ops' functions in an engine instead of the plugin."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx.inliner

from pom_export import contract
from pom_export.errors import InputError


def inlined(path: Path) -> bytes:
    """Return a model with its functions put in place of the nodes that call them; external weights stay outside.

    TensorRT's parser would not do: it looks for a function by name alone, and takes one variant for another without a
    word; and it prefers the plugin, wherever that was loaded before.

    Raises:
        InputError: the file lacks the function of an aggregation.
    """
    model = onnx.inliner.inline_local_functions(_load(path))
    left = sorted({node.op_type for node in model.graph.node if node.domain == contract.DOMAIN})
    if left:
        raise InputError(
            f"{path} lacks the function of {', '.join(left)}", "Export it again, or build without --no-plugin"
        )
    return model.SerializeToString()


def share_a_name(path: Path) -> bool:
    """Return whether several functions of a model have one name, and only their overloads tell them apart."""
    return any(count > 1 for count in Counter(function.name for function in _load(path).functions).values())


def _load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, format="protobuf", load_external_data=False)
