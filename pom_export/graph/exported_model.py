"""Read an exported file's interface: inputs, outputs, metadata, aggregations. Needs no torch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import onnx

from pom_export import contract
from pom_export.errors import InputError
from pom_export.files import readable_file
from pom_export.graph.claims import (
    BLOCK_CAUSAL,
    CAUSAL,
    INLINED,
    KEEP_FLOAT32,
    KEPT_IN_FLOAT32,
    METADATA_PREFIX,
    STATEFUL,
    Claims,
    InputLimits,
    read_claims,
)
from pom_export.graph.dimensions import BATCH, CONTEXT_TOKENS, PAST_TOKENS, TOKENS
from pom_export.graph.interface import TensorSpec, check_counts, check_ranges, read_interface, standard_opset
from pom_export.graph.nodes import is_aggregation
from pom_export.graph.onnx_file import check_onnx_file
from pom_export.graph.precisions import PRECISIONS
from pom_export.graph.unfolding import aggregations_of, all_nodes, unfolded
from pom_export.graph.weight_types import precision_of, weight_types
from pom_export.graph.whole_model import load_whole

__all__ = [
    "BATCH",
    "BLOCK_CAUSAL",
    "CAUSAL",
    "CONTEXT_TOKENS",
    "INLINED",
    "KEEP_FLOAT32",
    "KEPT_IN_FLOAT32",
    "METADATA_PREFIX",
    "PAST_CONTEXT",
    "PAST_CONVOLUTION",
    "PAST_KEY_VALUES",
    "PAST_LAYER",
    "PAST_LENGTH",
    "PAST_STATE",
    "PAST_TOKENS",
    "PRECISIONS",
    "STATEFUL",
    "TOKENS",
    "Claims",
    "ExportedModel",
    "InputLimits",
    "TensorSpec",
    "is_past",
    "nested",
    "present_name",
    "presents",
    "read_model",
]

# Inputs of a stateful export. The first two have the op's names; those of the others end in a dot and the layer, as the
# first does if mixers are of different widths.
PAST_STATE, PAST_LENGTH = contract.STATE_INPUTS
PAST_CONVOLUTION: Final = "past_conv"
PAST_KEY_VALUES: Final = "past_key_values"
# What a user's own model computed from a context, and what its own stateful layers keep.
PAST_CONTEXT: Final = "past_context"
PAST_LAYER: Final = "past_layer"
_LAYERS: Final = (PAST_STATE, PAST_CONVOLUTION, PAST_KEY_VALUES, PAST_CONTEXT, PAST_LAYER)

_TABLE_RANK: Final = 2


@dataclass(frozen=True)
class ExportedModel:
    """The interface of one of our ONNX files.

    Attributes:
        path: the file.
        inputs: its inputs, without initializers.
        outputs: its outputs.
        properties: our metadata, without the prefix: dtype, mask, limits, spec, source_sha256.
        opset: version of the standard ops.
        aggregations: names of the aggregation nodes, gated or not, including those in branches, loops and other tools'
            functions.
        attributes: the attributes of these nodes that are numbers or text.
        without_function: op types of these nodes for which the file has no function.
        weights: files of external weights, in the model's own folder.
        weight_types: how many values the weights of its products have in each floating-point type, without those in
            `keep_float32`.
        claims: the parsed properties.
        in_branches: how many of the aggregation nodes are in branches or loops.
        sizes_folded: whether all sizes are fixed, and everything computed from sizes alone is stored as weights, which
            are in half precision in a half-precision file.
    """

    path: Path
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    properties: Mapping[str, str]
    opset: int
    aggregations: Sequence[str]
    attributes: Sequence[Mapping[str, int | float | str]] = ()
    without_function: Sequence[str] = ()
    weights: Sequence[Path] = ()
    weight_types: Mapping[str, int] = field(default_factory=dict)
    claims: Claims = field(default_factory=Claims)
    in_branches: int = 0
    sizes_folded: bool = False

    @property
    def precision(self) -> str:
        """The type of the graph's weights and activations: "float32", "float16" or "bfloat16".

        What the user asked to keep in float32 has no say. If that holds all weights, the file's own word decides.
        """
        if self.keep_float32 and not self.weight_types:
            return self.properties.get("dtype") or PRECISIONS[0]
        specs = (*self.inputs, *self.outputs)
        floats = [spec.dtype.name for spec in specs if spec.dtype.kind not in "biu" and not is_past(spec.name)]
        return precision_of(self.weight_types, floats)

    @property
    def bytes(self) -> int:
        """The size of the file and of its external weights."""
        return sum(file.stat().st_size for file in (self.path, *self.weights))

    def facts(self) -> dict[str, Any]:
        """Return what results say of a file: its opset, inputs and outputs as text, and size."""
        return {
            "opset": self.opset,
            "inputs": [str(spec) for spec in self.inputs],
            "outputs": [str(spec) for spec in self.outputs],
            "bytes": self.bytes,
        }

    @property
    def kept_in_float32(self) -> Mapping[str, str]:
        """What a half-precision model keeps in float32 for exceptional reasons: reasons by module."""
        return self.claims.kept_in_float32

    @property
    def keep_float32(self) -> Sequence[str]:
        """The modules of a half-precision model that the user asked to be computed in float32."""
        return self.claims.keep_float32

    @property
    def stateful(self) -> str:
        """How much of its call a token sees: "causal" or "block-causal"; empty for a file without a state."""
        return self.properties.get(STATEFUL, "")

    @property
    def inlined(self) -> int:
        """How many aggregations of the original file are standard operators in this one, by its own account."""
        return int(self.properties.get(INLINED, "0"))

    @property
    def limits(self) -> InputLimits:
        """The file's limits on its inputs."""
        return self.claims.limits or InputLimits()

    @property
    def spec(self) -> Mapping[str, Any]:
        """The spec of the model that was exported, as parsed JSON; empty for a user's own class."""
        return self.claims.spec


def present_name(past: str) -> str:
    """Return the name of the output that becomes the given input of the past in the next call."""
    if past.startswith(f"{PAST_KEY_VALUES}."):
        return past.replace(PAST_KEY_VALUES, "present", 1)  # the name that other exporters use
    return past.replace("past", "present", 1)


def is_past(name: str) -> bool:
    """Return whether an input is part of the state."""
    return name in {PAST_STATE, PAST_LENGTH} or name.startswith(tuple(f"{group}." for group in _LAYERS))


def presents(inputs: Sequence[TensorSpec]) -> set[str]:
    """Return the names of the outputs that become inputs of the past in the next call."""
    return {present_name(spec.name) for spec in inputs if is_past(spec.name)}


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
    """Turn inputs by name into a module's arguments: a name with a dot is an entry of the mapping before the dot."""
    arguments: dict[str, Any] = {}
    for name, value in named.items():
        group, dot, rest = name.partition(".")
        if dot:
            arguments.setdefault(group, {})[rest] = value
        else:
            arguments[name] = value
    return arguments


def read_model(path: str | os.PathLike[str]) -> ExportedModel:
    """Read an ONNX file's interface, without its external weights.

    Raises:
        InputError: the file cannot be read, is not an ONNX model, or declares something that none of our models has.
    """
    file = readable_file(path, "model")
    external = check_onnx_file(file).externals
    model = load_whole(file)
    try:
        claims = read_claims((entry.key, entry.value) for entry in model.metadata_props)
        inputs, outputs = read_interface(model.graph)
        if claims.limits is not None:
            check_counts(claims.limits.values, inputs)
            check_ranges(claims.limits.ranges, inputs)
        opset = standard_opset(model)
        model = unfolded(model)
    except (ValueError, RuntimeError) as error:  # RuntimeError comes from onnx if functions cannot be inlined
        raise InputError(f"model {file} is not usable: {error}", "Export it again") from error
    nodes = aggregations_of(model.graph)
    functions = {(function.domain, function.name, function.overload) for function in model.functions}
    return ExportedModel(
        path=file,
        inputs=inputs,
        outputs=outputs,
        properties=claims.properties,
        opset=opset,
        aggregations=[node.name for node in nodes],
        attributes=[_attributes(node) for node in nodes],
        without_function=sorted({node.op_type for node in nodes if _called(node) not in functions}),
        weights=[file.parent / name for name in sorted(external)],
        weight_types=weight_types(model, claims.keep_float32),
        claims=claims,
        in_branches=len(nodes) - sum(map(is_aggregation, model.graph.node)),
        sizes_folded=_are_sizes_folded(model.graph, inputs),
    )


def _are_sizes_folded(graph: onnx.GraphProto, inputs: Sequence[TensorSpec]) -> bool:
    fixed = all(isinstance(axis, int) for spec in inputs for axis in spec.axes)
    return fixed and all(node.op_type != "Range" for node in all_nodes(graph)) and not _meets_wide_tables(graph)


def _meets_wide_tables(graph: onnx.GraphProto) -> bool:
    """Return whether an activation is converted to float32 to be multiplied by a float32 table.

    This happens if another tool fixed the sizes of a half-precision graph with dynamic ones, and folded what the graph
    computes in float32. Our export folds before it lowers the precision, so that a table gets the type of its operand.
    """
    float32 = onnx.TensorProto.FLOAT
    tables = {
        weight.name for weight in graph.initializer if weight.data_type == float32 and len(weight.dims) >= _TABLE_RANK
    }
    widened = {
        node.output[0]
        for node in graph.node
        if node.op_type == "Cast" and any(each.name == "to" and each.i == float32 for each in node.attribute)
    }
    products = (set(node.input) for node in graph.node if node.op_type == "Mul")
    return any(names & tables and names & widened for names in products)


def _called(node: onnx.NodeProto) -> tuple[str, str, str]:
    return node.domain, node.op_type, node.overload


def _attributes(node: onnx.NodeProto) -> dict[str, int | float | str]:
    kinds = onnx.AttributeProto
    values: dict[str, int | float | str] = {}
    for attribute in node.attribute:
        if attribute.type == kinds.STRING:
            values[attribute.name] = attribute.s.decode("utf-8", "replace")
        elif attribute.type in (kinds.INT, kinds.FLOAT):
            values[attribute.name] = attribute.i if attribute.type == kinds.INT else attribute.f
    return values
