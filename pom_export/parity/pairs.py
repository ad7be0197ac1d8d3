"""A user's own inputs with their expected outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from pom_export.errors import InputError, printable
from pom_export.files import as_path
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.parity.case import Array
from pom_export.parity.inputs import Inputs, case_of, read_arrays
from pom_export.parity.names import fits
from pom_export.parity.recording import Recording, load_recording, recorded_model
from pom_export.parity.targets import Target

_LONGEST_NAME = 80


def load_pairs(model: ExportedModel, inputs: Inputs) -> tuple[Recording, list[str]]:
    """Load a user's inputs with their expected outputs, and notes for the reader of a report.

    Args:
        model: the file.
        inputs: arrays named after the model's inputs and outputs, or parity data saved by an export, either of this
            model or of the one that another tool converted it from.

    Raises:
        InputError: an input is missing, there is no output, or one does not fit.
    """
    if not isinstance(inputs, Mapping):
        file = as_path(inputs, "file of inputs")
        if recorded_model(file) is not None:
            return load_recording(file, None, model.inputs, model.outputs), []
    case = case_of(inputs, model.inputs, model.limits)
    name, arrays = read_arrays(inputs)
    given = {spec.name: _output(name, arrays[spec.name], spec) for spec in model.outputs if spec.name in arrays}
    names = ", ".join(spec.name for spec in model.outputs)
    if not given:
        raise InputError(
            f"inputs {name} hold none of the model's outputs, which are {printable(names)}",
            "Give `checkpoint`, or add the expected outputs to the file, by name",
        )
    notes = [f"{printable(spec.name, _LONGEST_NAME)} was not compared: {name} does not hold it"
             for spec in model.outputs if spec.name not in given]  # fmt: skip
    return Recording([case], [Target(given)]), [*notes, *left_out(model, inputs, but=given)]


def left_out(model: ExportedModel, inputs: Inputs, but: Mapping[str, object]) -> list[str]:
    """Note the arrays that are neither inputs of the model nor in `but`."""
    name, arrays = read_arrays(inputs)
    others = sorted(arrays.keys() - {spec.name for spec in model.inputs} - but.keys())
    return [f"of {os.fspath(name)}, {printable(', '.join(others))} was not used"] if others else []


def _output(name: str, array: Array, spec: TensorSpec) -> Array:
    wanted = TensorSpec(spec.name, array.dtype, array.shape)
    bytes_alone = array.dtype.kind == "V"
    if not fits(spec, wanted) or (bytes_alone and array.dtype.itemsize != spec.dtype.itemsize):
        raise InputError(
            f"inputs {name}: {printable(spec.name, _LONGEST_NAME)} is {array.dtype}{list(array.shape)}, but the model "
            f"gives {spec}",
            "Save the output that belongs to these inputs",
        )
    # bfloat16, which NumPy lacks, is converted to float32, which changes no value.
    return array.view(spec.dtype).astype(np.float32) if bytes_alone else array
