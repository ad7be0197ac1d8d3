"""Load a file as an ONNX model that the onnx package has checked."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import onnx

from pom_export.errors import InputError, printable, reason_of
from pom_export.graph.opsets import STANDARD_DOMAINS
from pom_export.graph.unfolding import all_nodes

# How onnx reports an operator that it does not know.
_UNKNOWN_OP: Final = "No Op registered for"
_NOT_CHECKED: Final = "unknown"
_LONGEST_NAME: Final = 80
_INFER: Final = "Save what onnx.shape_inference.infer_shapes makes of it"
_DECLARE: Final = "Declare it with onnx.helper.make_tensor_value_info"


def load_whole(file: Path) -> onnx.ModelProto:
    """Return the model in a file, without its external weights.

    Raises:
        InputError: it is not an ONNX model.
    """
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)  # whatever the file's suffix
        _check_declared(file, model.graph)
        try:
            onnx.checker.check_model(file)
        except onnx.checker.ValidationError as error:
            if _UNKNOWN_OP not in str(error):
                raise
            onnx.checker.check_model(_without_unknown_ops(model))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file} is not a complete ONNX model: {reason_of(error)}", "Export it again") from error
    return model


def _check_declared(file: Path, graph: onnx.GraphProto) -> None:
    """Refuse inputs and outputs without a type or shape, as some tools leave them; onnx's checker doesn't name them."""
    for kind, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            declared = value.type.WhichOneof("value")
            if declared is None or (declared == "tensor_type" and not value.type.tensor_type.HasField("shape")):
                inferred, name = kind == "output" and declared, printable(value.name, _LONGEST_NAME)
                raise InputError(
                    f"model {file} is not usable: its {kind} {name} has no {'shape' if declared else 'type'}",
                    f"{_INFER if inferred else _DECLARE}, or export it again",
                )


def _without_unknown_ops(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy for checking, in which operators unknown to onnx are moved to a domain that it does not check.

    ONNX Runtime has additional operators in the standard domain, which its optimizers use, and refuses any that it does
    not know.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in [*all_nodes(copy.graph), *(node for function in copy.functions for node in function.node)]:
        if node.domain in STANDARD_DOMAINS and not onnx.defs.has(node.op_type):
            node.domain = _NOT_CHECKED
    for part in (copy, *copy.functions):
        part.opset_import.add(domain=_NOT_CHECKED, version=1)
    for weight in copy.graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL:  # its location has already been checked
            weight.CopyFrom(onnx.TensorProto(name=weight.name, data_type=weight.data_type, dims=[0]))
    return copy
