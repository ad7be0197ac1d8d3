"""Fuse the graph in a file: read it, complete its shapes, rewrite it, and optimise what is around the new nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from pom_export import contract
from pom_export.errors import InputError
from pom_export.graph.fusing.evaluation import SHAPES, Evaluator
from pom_export.graph.fusing.finding import Findings
from pom_export.graph.fusing.gates import PlainReshapesPass, SlicesToSplitPass
from pom_export.graph.fusing.model import Fusion
from pom_export.graph.fusing.selecting import PlainGatesPass
from pom_export.graph.fusing.shapes import Seen, complete_shapes, inferred
from pom_export.graph.fusing.sources import Source
from pom_export.graph.fusing.tokens import named
from pom_export.graph.interface import TensorSpec
from pom_export.graph.nodes import is_aggregation
from pom_export.graph.opsets import OPSETS, STANDARD_DOMAINS
from pom_export.graph.passes import AttachFunctionsPass, FactorGatePass, FuseGatePass, SplitProjectionPass
from pom_export.graph.quantized.operators import is_quantized
from pom_export.graph.saving import EXTERNAL_DATA_BYTES
from pom_export.graph.unfolding import unfolded

# The oldest opset that the op's function can be written in, one before that of exports.
OLDEST_OPSET: Final = OPSETS.start - 1
# Functions came with this version of the format.
_IR_VERSION: Final = 8
_ROWS: Final = 2
# Names that ONNX Runtime's optimizer gives to its own constants: it fails where a file that it made has them already,
# and a function holds another product that it would join with a sum.
_OPTIMIZERS_NAMES: Final = ("gemm_input_shape", "gemm_output_shape")


class Observation(NamedTuple):
    """What was seen when a graph ran.

    Attributes:
        runs: several runs, at different sizes.
        same: dimensions that must have the same size as another one, by name.
    """

    runs: Sequence[Seen]
    same: Mapping[str, str]


Observe = Callable[[onnx.ModelProto], Observation]


@dataclass
class Fused:
    """A rewritten graph.

    Attributes:
        model: the graph.
        findings: what was found in it.
        kept: how many nodes of the op it held before.
        notes: remarks about it, one line each.
        quantized: whether it computes in fewer bits.
        masks: the inputs that say which tokens count.
        padding: those of them whose ones say which do not.
    """

    model: ir.Model
    findings: Findings
    kept: int
    notes: list[str] = field(default_factory=list)
    quantized: bool = False
    masks: frozenset[str] = frozenset()
    padding: frozenset[str] = frozenset()


def fused_graph(file: Path, inputs: Sequence[TensorSpec], observe: Observe, *, optimize: bool = True) -> Fused:
    """Return a file's graph with the op in place of aggregations in standard operators.

    Args:
        file: the file.
        inputs: its inputs, with a name for each dynamic dimension.
        observe: runs a graph at several sizes.
        optimize: whether to rewrite products and gates around the new nodes so that they cost less.

    Raises:
        InputError: the graph's opset is not supported, or there are too many kinds of aggregation.
    """
    proto = unfolded(onnx.load(file, format="protobuf", load_external_data=False))
    _check_opset(file, proto)
    declared = {value.name: _shape_of(value) for value in (*proto.graph.input, *proto.graph.output)}
    _name_dimensions(proto, inputs, {})
    observation = observe(proto)
    _name_dimensions(proto, inputs, observation.same)
    model = ir.from_proto(inferred(proto))
    ir.external_data.set_base_dir(model.graph, file.parent)
    complete_shapes(model.graph, observation.runs)
    kept = sum(map(is_aggregation, model.graph.all_nodes()))
    fusion = Fusion(model)
    findings = fusion.findings
    masks = [(found.aggregate.mask, _inputs_behind(found.aggregate.mask)) for found in findings.found]
    padding = [inputs for mask, inputs in masks if mask is not None and _means_padding(model.graph, mask, inputs)]
    quantized = is_quantized(model)
    fused = Fused(
        model, findings, kept, notes_of(findings), quantized, _names(inputs for _, inputs in masks), _names(padding)
    )
    if findings.found:
        fusion.put()
        _finish(model, optimize)
        _load_weights(model)
        for value in (*model.graph.inputs, *model.graph.outputs):
            value.shape = declared[value.name or ""]
    return fused


def _check_opset(file: Path, proto: onnx.ModelProto) -> None:
    opset = next(each.version for each in proto.opset_import if each.domain in STANDARD_DOMAINS)
    if not OLDEST_OPSET <= opset < OPSETS.stop:
        raise InputError(
            f"{file} uses opset {opset}, and files of opset {OLDEST_OPSET} to {OPSETS.stop - 1} can be fused",
            "Export it with one of these, or convert it with onnx.version_converter",
        )


def _shape_of(value: onnx.ValueInfoProto) -> ir.Shape:
    """Return the shape that an input or output declares."""
    dims = value.type.tensor_type.shape.dim
    return ir.Shape([dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in dims])


def _name_dimensions(proto: onnx.ModelProto, inputs: Sequence[TensorSpec], same: Mapping[str, str]) -> None:
    """Give each dynamic dimension of the inputs a name, so that shapes can be told apart."""
    specs = {spec.name: spec for spec in inputs}
    for value in proto.graph.input:
        if value.name in specs:
            for dim, axis in zip(value.type.tensor_type.shape.dim, specs[value.name].axes, strict=True):
                if isinstance(axis, str):
                    dim.dim_param = same.get(axis, axis)


def _finish(model: ir.Model, optimize: bool) -> None:
    passes: list[ir.passes.InPlacePass] = []
    if optimize:
        half = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.inputs)
        passes += [
            PlainReshapesPass(),
            common.RemoveUnusedNodesPass(),
            PlainGatesPass(),
            common.RemoveUnusedNodesPass(),
        ]
        passes += [SlicesToSplitPass(), SplitProjectionPass()]
        passes += [*([] if half else [FactorGatePass()]), FuseGatePass(), common.RemoveUnusedNodesPass()]
    passes += [AttachFunctionsPass(), common.RemoveUnusedFunctionsPass()]
    try:
        ir.passes.Sequential(*passes)(model)
    except ir.passes.PassError as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from error
        raise
    for name in _OPTIMIZERS_NAMES:
        if name in model.graph.initializers:
            model.graph.initializers[name].name = f"{name}_kept"
    model.ir_version = max(model.ir_version, _IR_VERSION)
    model.opset_imports[contract.DOMAIN] = contract.OP_VERSION
    model.graph.opset_imports.update(model.opset_imports)


def _load_weights(model: ir.Model) -> None:
    """Load weights from other files, unless they are so large that the new file has another one as well."""
    graphs = [model.graph, *(graph for node in model.graph.all_nodes() for graph in _graphs_in(node))]
    weights = [value for graph in graphs for value in graph.initializers.values()]
    if sum(value.const_value.nbytes for value in weights if value.const_value is not None) > EXTERNAL_DATA_BYTES:
        return
    for value in weights:
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _graphs_in(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _names(groups: Iterable[Iterable[ir.Value]]) -> frozenset[str]:
    return frozenset(value.name or "" for group in groups for value in group)


def _means_padding(graph: ir.Graph, mask: Source, inputs: Sequence[ir.Value]) -> bool:
    """Return whether a mask keeps no token where its input is 1 everywhere."""
    shapes = [[size if isinstance(size, int) else _ROWS for size in each.shape or ()] for each in inputs]
    ones = {each: np.ones(shape) for each, shape in zip(inputs, shapes, strict=True)}
    given = {each: array.astype(np.bool_) if each.dtype == ir.DataType.BOOL else array for each, array in ones.items()}
    made = Evaluator(graph).run([mask.value], given, named({}, graph)).get(mask.value)
    return made is not None and bool(np.all(made) if mask.inverted else not np.any(made))


def _inputs_behind(mask: Source | None) -> list[ir.Value]:
    """Return the graph inputs that a mask is computed from."""
    waiting = [] if mask is None else [mask.value]
    seen, found = set(), []
    while waiting:
        value = waiting.pop()
        if value.is_graph_input() and value not in found:
            found.append(value)
        node = value.producer()
        if node is not None and node not in seen and node.op_type not in SHAPES:
            seen.add(node)
            waiting.extend(each for each in node.inputs if each is not None)
    return found


def notes_of(findings: Findings) -> list[str]:
    """Return remarks about what was found, one line each."""
    notes = {}
    for found in findings.found:
        aggregate = found.aggregate
        if aggregate.empty == "NaN":
            notes["empty"] = "a row whose mask keeps no token gives 0; in the file given it is NaN, 0 divided by 0"
        elif aggregate.empty == "other":
            notes["other"] = "a row whose mask keeps no token gives 0; in the file given it is another number"
        notes |= {note: note for note in aggregate.notes}
        if aggregate.mode == "features":
            notes["full"] = "a (B, T, N) mask is multiplied as before: quadratic in tokens, and NaN where it is empty"
    return list(notes.values())
