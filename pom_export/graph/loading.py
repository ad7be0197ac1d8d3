"""Load a file's graph to look into or to rewrite."""

from __future__ import annotations

import os

import onnx_ir as ir

from pom_export.errors import InputError, reason_of


def load_graph(path: str | os.PathLike[str]) -> ir.Model:
    """Load a graph, with large weights left in their files until they are used.

    Raises:
        InputError: the file has something that no graph of ours has, such as an attribute of two kinds.
    """
    try:
        return ir.load(path, format="protobuf")
    except ir.serde.SerdeError as error:
        cause = error.__cause__ or error
        raise InputError(f"model {os.fspath(path)} is not usable: {reason_of(cause)}", "Export it again") from error
