"""Check that each aggregation's function in a file computes what the node's attributes and inputs say.

Other tools rewrite files: they rename values in a body, fold its constants, or put one body in place of another. So a
body is not read but run, with onnx's reference evaluator, on small inputs that reveal each attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from pom_export import contract
from pom_export.errors import InputError, reason_of
from pom_export.graph.function import build_function
from pom_export.graph.function_feeds import Array, feeds, first, last
from pom_export.graph.gated_function import build_gated_function
from pom_export.graph.nodes import input_named, is_aggregation, op_of
from pom_export.graph.opsets import STANDARD_DOMAINS
from pom_export.graph.schema import attributes, register_schema
from pom_export.graph.unfolding import unfolded
from pom_export.graph.variants import gated_variant_of, variant_of

# For few tokens, two bodies with the same formula in float32 only differ by rounding; half types round their outputs.
_TOLERANCES = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
_HALVES = ("float16", "bfloat16")
# A weight with at most this many values may determine a shape.
_SMALL = 64
_WIDEST = 2**20
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
_HINT = "Export it again: another tool has changed or mixed up its functions"


class CumSum(OpRun):
    """CumSum that also accepts an axis of rank 1, as in earlier versions of our functions."""

    def _run(self, x: Array, axis: Array, exclusive: int = 0, reverse: int = 0) -> tuple[Array]:
        along = int(np.reshape(axis, ()))
        values = np.flip(x, along) if reverse else x
        sums = np.cumsum(values, along, dtype=x.dtype)
        sums = sums - values if exclusive else sums
        return (np.flip(sums, along) if reverse else sums,)


def check_functions(path: Path, proto: onnx.ModelProto | None = None) -> list[str]:
    """Check that each aggregation's function computes what the node's attributes and input types ask for.

    Nodes that have no function are skipped.

    Args:
        path: path of the file.
        proto: the model in it, if already loaded; its weights are not needed.

    Returns:
        The nodes whose function could not be checked, each with the reason; in a branch, for example, the shapes of
        inputs may be unknown.

    Raises:
        InputError: a function computes something else; the message names the node and the function.
    """
    if proto is None:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    try:
        model = ir.from_proto(_with_shapes(unfolded(proto)))
    except Exception as error:
        raise InputError(f"the graph of {path} is not usable: {reason_of(error)}", "Export it again") from error
    opset = model.opset_imports[STANDARD_DOMAINS[0]]
    checked, unknown = set(), []
    for node in model.graph.all_nodes():
        function = model.functions.get(node.op_identifier()) if is_aggregation(node) else None
        if function is None:
            continue
        where = f"{path}: node {node.name} and its function {function.domain}::{function.name} do not match"
        try:
            _complete(node)
            gated = op_of(node) == contract.GATED_OP_NAME
            variant = gated_variant_of(node) if gated else variant_of(node)
            _check_sizes(node, function)
        except InputError as error:
            unknown.append(error.what)
            continue
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{where}: {error}", _HINT) from error
        key = (function.identifier(), variant, str([value and value.shape for value in node.inputs]))
        if key in checked:
            continue
        checked.add(key)
        build: Any = build_gated_function if gated else build_function
        try:
            body = ir.to_proto(function)
        except Exception as error:
            raise InputError(f"{where}: the function cannot be read", _HINT) from error
        problem = _difference(node, ir.to_proto(build(variant, opset)), body)
        if problem:
            raise InputError(f"{where}: {problem}", _HINT)
    return unknown


def _with_shapes(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without its large weights, with the types and shapes that can be inferred from its inputs."""
    register_schema()
    skeleton = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    for part in (skeleton, *skeleton.functions):
        for imported in part.opset_import:
            if imported.domain in STANDARD_DOMAINS:
                imported.domain = STANDARD_DOMAINS[0]
    graph = proto.graph
    skeleton.graph.name = graph.name or "graph"
    for field in ("node", "input", "output", "value_info"):
        getattr(skeleton.graph, field).extend(getattr(graph, field))
    declared = {value.name for value in graph.input}
    for weight in graph.initializer:
        if np.prod(weight.dims) <= _SMALL and weight.data_location != onnx.TensorProto.EXTERNAL:
            skeleton.graph.initializer.append(weight)
        elif weight.name not in declared:
            skeleton.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    try:
        return onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return skeleton  # with the types and shapes that the file declares


def _complete(node: ir.Node) -> None:
    """Add a node's missing attributes.

    Raises:
        ValueError: the mode is missing, or an attribute is invalid.
    """
    if "mode" not in node.attributes:
        raise ValueError("the attribute mode is missing")
    for name, value in attributes(node.attributes["mode"].as_string()).items():
        if name not in node.attributes:
            node.attributes[name] = ir.convenience.convert_attribute(name, value)
    contract.check_attributes(
        mode=node.attributes["mode"].as_string(),
        epsilon=node.attributes["epsilon"].as_float(),
        degree=node.attributes["degree"].as_int(),
        rotary_blocks=node.attributes["rotary_blocks"].as_int(),
        form=node.attributes["form"].as_string(),
        stateful=node.attributes["stateful"].as_int(),
    )


def _check_sizes(node: ir.Node, function: ir.Function) -> None:
    """Raise ValueError if a body would take long to build or to run, since a file may declare anything."""
    coefficients = input_named(node, "coefficients")
    widths = [first(coefficients), *(last(input_named(node, name), 0) for name in ("x", "gate", "gate_bias"))]
    if max(widths) > _WIDEST:
        raise ValueError(f"an input has {max(widths)} channels, and at most {_WIDEST} are accepted")
    degree = last(coefficients, contract.MIN_DEGREE)
    if not contract.MIN_DEGREE <= degree <= contract.MAX_DEGREE:
        raise ValueError(f"coefficients have {degree} columns, not {contract.MIN_DEGREE} to {contract.MAX_DEGREE}")
    if any(attribute.type in _GRAPHS for inner in function for attribute in inner.attributes.values()):
        raise ValueError("it has branches or loops, which the function of an aggregation never has")


def _difference(node: ir.Node, wanted: onnx.FunctionProto, given: onnx.FunctionProto) -> str:
    """Return how a function differs from the one that the node needs; empty if it does not."""
    if len(given.input) < len(wanted.input):
        return f"it takes {len(given.input)} inputs, and the node has {len(wanted.input)}"
    for feed in feeds(node):
        try:
            expected = _run(wanted, feed, node)
        except Exception as error:  # noqa: BLE001 (another tool may have changed some of the types)
            types = ", ".join(array.dtype.name for array in feed.values())
            return f"the node's inputs have types that the op does not accept together, {types}: {reason_of(error)}"
        try:
            made = _run(given, feed, node)
        except Exception as error:  # noqa: BLE001 (another tool's body may raise anything)
            return (
                _left_in_single(node, given, feed) or f"it cannot be run on inputs like the node's: {reason_of(error)}"
            )
        for name, one, other in zip(wanted.output, expected, made, strict=False):
            if one.dtype != other.dtype or one.shape != other.shape:
                return f"{name} is {other.dtype}{list(other.shape)}, not {one.dtype}{list(one.shape)}"
            largest = max(_largest_difference(*pair) for pair in _shown(name, one, other, feed))
            if not largest <= _TOLERANCES.get(one.dtype.name, 0):
                return f"on small inputs {name} differs by {largest:.2g} of its largest value"
        if len(made) < len(node.outputs):
            return f"it gives {len(made)} outputs, and the node has {len(node.outputs)}"
    return ""


def _left_in_single(node: ir.Node, given: onnx.FunctionProto, feed: Mapping[str, Array]) -> str:
    """Explain that a function takes float32 where its node has half precision: tools convert graphs, not functions."""
    half = next((array.dtype.name for array in feed.values() if array.dtype.name in _HALVES), None)
    if half is None:
        return ""
    wide = {name: array.astype(np.float32) if array.dtype.name in _HALVES else array for name, array in feed.items()}
    try:
        _run(given, wide, node)
    except Exception:  # noqa: BLE001 (another tool's body may raise anything)
        return ""
    return f"the node is given {half}, and the function computes in float32: dtype {half} exports both in half"


def _shown(name: str, one: Array, other: Array, feed: Mapping[str, Array]) -> Iterator[tuple[Array, Array]]:
    """Yield what to compare of two outputs: themselves and, for a state (a sum of two floats), what the call adds."""
    yield one, other
    if name == contract.STATE_OUTPUTS[0]:
        past = feed[contract.STATE_INPUTS[0]].astype(np.float64)
        yield tuple((state.astype(np.float64) - past).sum(axis=1).astype(np.float32) for state in (one, other))


def _largest_difference(one: Array, other: Array) -> float:
    """Return the largest difference over the largest finite magnitude; infinity if only one is finite somewhere."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(np.where(finite, 0, one), np.where(np.isfinite(other), 0, other), equal_nan=True):
        return np.inf
    one, other = one[finite], other[finite]
    return float(np.max(np.abs(one - other), initial=0) / max(np.max(np.abs(one), initial=0), 1e-30))


def _run(function: onnx.FunctionProto, feed: Mapping[str, Array], node: ir.Node) -> list[Array]:
    given = {name: attribute.value for name, attribute in node.attributes.items() if name in function.attribute}
    evaluator = ReferenceEvaluator(function, new_ops=[CumSum])
    with np.errstate(all="ignore"):
        made: list[Array] = evaluator.run(
            None, dict(zip(function.input, feed.values(), strict=False)), attributes=given
        )  # type: ignore[assignment]
    return made
