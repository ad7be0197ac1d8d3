"""Copy a quantized file so that it computes with the same weights, and rounds no activations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import onnx_ir as ir

from pom_export.files import scratch_folder
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.loading import load_graph
from pom_export.graph.quantized.products import BLOCK_PRODUCT
from pom_export.graph.quantized.reading import dequantize
from pom_export.graph.quantized.writing import FLOAT_ACTIVATIONS
from pom_export.graph.saving import save_graph

_ACCURACY: Final = "accuracy_level"


@contextmanager
def unrounded(model: ExportedModel) -> Iterator[ExportedModel]:
    """Yield a copy of a quantized file from `save_unrounded`, as long as the context lasts."""
    with scratch_folder() as folder:
        copy = folder / "unrounded.onnx"
        save_unrounded(model.path, copy)
        yield read_model(copy)


def save_unrounded(model: Path, path: Path) -> None:
    """Save a copy of a quantized file that rounds no activations.

    Products in blocks stay ONNX Runtime's own, so that its reading of the integers is what is compared.

    Args:
        model: the file.
        path: where the copy goes.

    Raises:
        InputError: as for `quantized_products`.
    """
    graph = load_graph(model)
    dequantize(graph, blocks=False)
    for node in graph.graph:
        if node.op_type == BLOCK_PRODUCT:
            node.attributes[_ACCURACY] = ir.AttrInt64(_ACCURACY, FLOAT_ACTIVATIONS)
    save_graph(graph, path)
