"""The file of external weights, named after its contents so that no graph runs with another's weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx

from pom_export.errors import InputError
from pom_export.files import sha256_of

_DIGITS: Final = 16
_NAME: Final = re.compile(rf".+\.([0-9a-f]{{{_DIGITS}}})\.data", re.DOTALL)


def weights_name(model: str, sha256: str) -> str:
    """Return the name of a model's file of weights: model.onnx -> model.onnx.0123456789abcdef.data."""
    return f"{model}.{sha256[:_DIGITS]}.data"


def rename_by_content(model: Path, weights: Path) -> None:
    """Name a model's single file of external weights after its content, in the folder and in the graph.

    Any tool that reads the graph then finds the weights that were saved with it, or none.
    """
    named = weights.with_name(weights_name(model.name, sha256_of(weights)))
    weights.rename(named)
    graph = onnx.load(model, format="protobuf", load_external_data=False)
    for tensor in _initializers(graph.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = named.name
    onnx.save(graph, model, format="protobuf")


def _initializers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers of a graph and of its nested graphs, which `onnx_ir.save` stores externally."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _initializers(inner)


def own_weights(model: Path) -> list[Path]:
    """Return the files in a model's folder that are named as weights of exports with this name."""
    files = (file for file in model.parent.iterdir() if file.name.startswith(f"{model.name}."))
    return [file for file in files if _digits(file) and weights_name(model.name, _digits(file)) == file.name]


def check_weights(file: Path, sha256: str) -> None:
    """Raise InputError if the name of a file of weights contains a hash that is not its own."""
    digits = _digits(file)
    if digits and not sha256.startswith(digits):
        raise InputError(
            f"weights {file} are not the model's: their sha256 begins with {sha256[:_DIGITS]}, but their name says "
            f"{digits}",
            "Export it again",
        )


def _digits(file: Path) -> str:
    """Return the digits of the hash in a file's name; empty if there is none."""
    match = _NAME.fullmatch(file.name)
    return match[1] if match else ""
