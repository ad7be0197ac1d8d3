"""Find values of a graph that may leave a half type's range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from pom_export.graph.nodes import aggregation_nodes, is_aggregation, module_of
from pom_export.graph.precision.bounds import aggregate_bound
from pom_export.graph.precision.rules import (
    FOLLOWING,
    PROMOTING,
    RANGE_HUNGRY,
    SPREADING,
    fits,
    is_constant,
    is_float,
    largest,
)

# Real inputs may be larger than those used by the export.
_MARGIN = 2


@dataclass
class OutOfRange:
    """Values that are not safe in a half type.

    Attributes:
        values: the values. Whatever computes or reads one does so in float32.
        reasons: why parts of a module are kept in float32, by the module's name. What is in float32 in every
            half-precision graph has no reason.
    """

    values: set[ir.Value] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)


def find_out_of_range(model: ir.Model, dtype: ir.DataType, peaks: Mapping[str, float]) -> OutOfRange:
    """Return the values that may exceed a half type's range.

    Args:
        model: a float32 graph.
        dtype: the half type.
        peaks: observed magnitudes, by name of the value; if empty, only the weights are known.
    """
    found, most = OutOfRange(), largest(dtype)
    small = {name for name, peak in peaks.items() if _MARGIN * peak <= most}
    for node in aggregation_nodes(model):
        found.values.update(_sums(node))
    for node in model.graph:
        if is_aggregation(node):
            _judge_aggregate(found, node, most, peaks)
        unfit = node.op_type in FOLLOWING | PROMOTING and not _constants_fit(node, dtype)
        for value in filter(is_float, node.outputs):
            peak = peaks.get(value.name or "", 0.0)
            large = _MARGIN * peak > most
            if large and value not in found.values and node.op_type not in RANGE_HUNGRY:
                found.reasons.setdefault(module_of(node), f"its values reach {peak:.3g} on the test inputs")
            if large or unfit:
                found.values.update(_spread(value, small))
    return found


def _judge_aggregate(found: OutOfRange, node: ir.Node, most: float, peaks: Mapping[str, float]) -> None:
    """Note an aggregate that is not certain to stay in range, and everything computed from it."""
    bound, output = aggregate_bound(node), node.outputs[0]
    if bound is None and (output.name in peaks or not peaks):
        return  # the observed values decide
    if bound is not None and bound <= most:
        return
    for mean in _means(node):
        found.values.update(_spread(mean, set()))
    how = "is not bounded by its weights" if bound is None else f"may reach {bound:.3g}"
    found.reasons[module_of(node)] = f"the aggregate {how}"


def _means(node: ir.Node) -> Iterator[ir.Value]:
    """Yield an aggregation's result; for mode "features", also the quotients of a mask's product and its divisor."""
    yield node.outputs[0]
    for value in _sums(node):
        yield from (user.outputs[0] for user, _ in value.uses() if user.op_type == "Div")


def _sums(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the features, and their sums under a (B, T, N) mask, which grow with the number of tokens."""
    if node.attributes["mode"].as_string() == "features":
        features = node.outputs[0]
        yield features
        yield from (user.outputs[0] for user, _ in features.uses() if user.op_type == "MatMul")


def _spread(value: ir.Value, small: set[str]) -> Iterator[ir.Value]:
    """Yield a value and those that are large because of it, except those that were observed to be small."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        yield current
        for user, _ in current.uses():
            for output in user.outputs if user.op_type in SPREADING else ():
                if is_float(output) and output not in seen and output.name not in small:
                    seen.add(output)
                    waiting.append(output)


def _constants_fit(node: ir.Node, dtype: ir.DataType) -> bool:
    return all(
        fits(value, dtype) for value in node.inputs if value is not None and is_float(value) and is_constant(value)
    )
