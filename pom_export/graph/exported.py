"""Read an exported file's interface: inputs, outputs, metadata, aggregations. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx

from pom_export import contract
from pom_export.errors import InputError, reason_of
from pom_export.files import readable_file

METADATA_PREFIX: Final = "pom_export."
# The property that holds what a half-precision export keeps in float32: reasons by module, as JSON.
KEPT_IN_FLOAT32: Final = "kept_in_float32"
# Names of dynamic dimensions, in the file and in every shape that a user gives.
BATCH: Final = "batch"
TOKENS: Final = "tokens"
CONTEXT_TOKENS: Final = "context_tokens"
PAST_TOKENS: Final = "past_tokens"
# Inputs of a stateful export, the first two named as the op's; behind the others' dot stands the layer.
PAST_STATE, PAST_LENGTH = contract.STATE_INPUTS
PAST_CONVOLUTION: Final = "past_conv"
PAST_KEY_VALUES: Final = "past_key_values"
# The property that says what a token of a call sees of it: "causal" or "block-causal"; stateless files lack it.
STATEFUL: Final = "stateful"
CAUSAL: Final = "causal"
BLOCK_CAUSAL: Final = "block-causal"
PRECISIONS: Final = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class TensorSpec:
    """One graph input or output: its name, numpy dtype (ml_dtypes' for bfloat16) and axes.

    An axis is a size, or the name of a dynamic dimension.
    """

    name: str
    dtype: np.dtype[Any]
    axes: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.axes))}]"


@dataclass(frozen=True)
class InputLimits:
    """What a model's inputs may hold besides what their types say.

    Attributes:
        values: for inputs of integers: how many values there are, from 0 on; one number, or one a column.
        tokens: most tokens; None: any number.
        scale: largest standard deviation of float16 inputs; None: any.
    """

    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tokens: int | None = None
    scale: float | None = None

    def to_json(self) -> str:
        """Return one line of JSON, as it is written into exported files."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class ExportedModel:
    """The interface of an ONNX file of ours.

    Attributes:
        path: the file.
        inputs: its inputs, initializers left out.
        outputs: its outputs.
        properties: our metadata, without the prefix: dtype, mask, limits, spec, source_sha256.
        opset: version of the standard ops.
        aggregations: names of the aggregation nodes, gated or not.
        weights: files of external weights.
    """

    path: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    properties: Mapping[str, str]
    opset: int
    aggregations: Sequence[str]
    weights: Sequence[Path] = ()

    @property
    def precision(self) -> str:
        """The type of weights and activations: "float32", "float16" or "bfloat16"."""
        named = self.properties.get("dtype", "")
        return named if named in PRECISIONS else PRECISIONS[0]

    @property
    def kept_in_float32(self) -> dict[str, str]:
        """What a half-precision model keeps in float32 because of its values: reasons by module."""
        kept: dict[str, str] = json.loads(self.properties.get(KEPT_IN_FLOAT32, "{}"))
        return kept

    @property
    def stateful(self) -> str:
        """What a token sees of its call: "causal" or "block-causal"; empty for a file without a state."""
        return self.properties.get(STATEFUL, "")

    @property
    def limits(self) -> InputLimits:
        """What the inputs may hold."""
        return InputLimits(**json.loads(self.properties.get("limits", "{}")))

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec of the model that was exported, as parsed JSON; empty for a user's own class."""
        spec: Mapping[str, Any] = json.loads(self.properties.get("spec", "{}"))
        return spec


def present_name(past: str) -> str:
    """Return the name of the output that becomes an input of the past in the next call."""
    if past.startswith(f"{PAST_KEY_VALUES}."):
        return past.replace(PAST_KEY_VALUES, "present", 1)  # as the ecosystem's files have it
    return past.replace("past", "present", 1)


def is_past(name: str) -> bool:
    """Return whether an input is a part of the state."""
    return name in {PAST_STATE, PAST_LENGTH} or name.startswith((f"{PAST_CONVOLUTION}.", f"{PAST_KEY_VALUES}."))


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a module is called with: a name with a dot is an entry of the mapping named before it."""
    arguments: dict[str, Any] = {}
    for name, value in named.items():
        group, dot, rest = name.partition(".")
        if dot:
            arguments.setdefault(group, {})[rest] = value
        else:
            arguments[name] = value
    return arguments


def read_model(path: str | os.PathLike[str]) -> ExportedModel:
    """Read an ONNX file's interface, not its external weights.

    Raises:
        InputError: the file cannot be read or is no ONNX model.
    """
    file = readable_file(path, "model")
    try:
        model = onnx.load(file, format="protobuf", load_external_data=False)  # whatever the file's suffix
        onnx.checker.check_model(file)
    except Exception as error:
        reason = reason_of(error)
        raise InputError(f"{file} is not a whole ONNX model: {reason}", "Export it again") from error
    weights = {tensor.name for tensor in model.graph.initializer}
    return ExportedModel(
        path=file,
        inputs=[_tensor_spec(value) for value in model.graph.input if value.name not in weights],
        outputs=[_tensor_spec(value) for value in model.graph.output],
        properties={p.key.removeprefix(METADATA_PREFIX): p.value for p in model.metadata_props},
        opset=next(imported.version for imported in model.opset_import if not imported.domain),
        aggregations=[
            node.name
            for node in model.graph.node
            if node.domain == contract.DOMAIN and node.op_type in {contract.OP_NAME, contract.GATED_OP_NAME}
        ],
        weights=[file.parent / name for name in sorted(_external_files(model))],
    )


def _external_files(model: onnx.ModelProto) -> set[str]:
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    if not value.type.HasField("tensor_type"):
        raise InputError(f"{value.name} is no tensor", "Only tensor inputs and outputs are supported")
    tensor = value.type.tensor_type
    axes = tuple(dim.dim_param or int(dim.dim_value) for dim in tensor.shape.dim)
    return TensorSpec(value.name, np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)), axes)
