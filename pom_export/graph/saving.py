"""Save a graph as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from pom_export.errors import InputError, printable, reason_of
from pom_export.graph.interface import LONGEST_NAME
from pom_export.graph.opsets import OPSETS
from pom_export.graph.weights_file import rename_by_content

# Protocol buffers are limited to 2 GB; above this size, the weights go to a separate file.
EXTERNAL_DATA_BYTES = 1_500_000_000
_LONGEST_SHOWN = 60


def save_model(model: ir.Model, path: Path) -> None:
    """Save a model, with large weights in a file beside it, and check it with onnx.checker.

    Raises:
        InputError: the checker rejects it because an op does not support the model's type at this opset; ONNX Runtime
            would mistake the file for one in its own format; or a name is longer than what we read.
    """
    _check_names(model.graph)
    if path.suffix == ".ort":
        raise InputError(f"ONNX Runtime takes {path.name} for a file in its own format", "Choose another suffix")
    save_graph(model, path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        reason = reason_of(error)
        raise InputError(
            f"the model is not valid at opset {model.opset_imports['']}: {reason}",
            f"Try a newer one, up to `opset={OPSETS.stop - 1}`",
        ) from error


def _check_names(graph: ir.Graph) -> None:
    """Raise InputError if a name that a user chose is longer than what is read from a file."""
    kinds = (
        ("output", graph.outputs, "Return it by a shorter key"),
        ("input", graph.inputs, "Give it a shorter name in the model's forward"),
        ("weight", graph.initializers.values(), "Give the modules that hold it shorter names"),
    )
    for kind, values, hint in kinds:
        for value in values:
            if value.name is not None and len(value.name) > LONGEST_NAME:
                shown = printable(value.name, _LONGEST_SHOWN)
                raise InputError(
                    f"the {kind} {shown} has a name of {len(value.name)} characters, of at most {LONGEST_NAME}", hint
                )


def save_graph(model: ir.Model, path: Path) -> None:
    """Save a graph without checks, with large weights in a file beside it; see `weights_file`."""
    weights = (value.const_value for value in model.graph.initializers.values())
    size = sum(tensor.nbytes for tensor in weights if tensor is not None)
    external_data = path.with_name(f"{path.name}.data") if size > EXTERNAL_DATA_BYTES else None
    if external_data is None:
        ir.external_data.load_to_model(model)  # a weight in another file would be looked for beside this one
    # Otherwise the file's suffix would determine the format.
    ir.save(model, path, format="protobuf", external_data=external_data and external_data.name)
    if external_data is not None and external_data.exists():
        rename_by_content(path, external_data)
