"""Decide, node by node, what a half-precision graph computes in float32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from pom_export.graph.exported_model import PAST_STATE
from pom_export.graph.nodes import aggregation_nodes, gated_nodes, input_named, input_names, is_aggregation
from pom_export.graph.precision.range import OutOfRange, find_out_of_range
from pom_export.graph.precision.rules import (
    ANGLES,
    FOLLOWING,
    PROMOTING,
    RANGE_HUNGRY,
    is_constant,
    is_float,
    reads_any,
    takes,
    takes_input,
)

# Inputs of an aggregation that may be float32 whatever the type of x, and are if it costs nothing; grouped by common
# type.
_EXACT_INPUTS = (("coefficients",), ("gate_bias",), ("cos", "sin"))

_GRAPHS = {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}


@dataclass
class PrecisionPlan:
    """What a half-precision graph computes in float32.

    Attributes:
        dtype: the half type.
        opset: the graph's version of the standard ops.
        out_of_range: values that may exceed the half type's range.
        kept: the nodes of modules that are kept in float32 as a whole, because the user asked for it.
        single: the nodes that compute in float32, those among them.
        state: values that mixers keep from one call to the next, which are sums that need float32.
    """

    dtype: ir.DataType
    opset: int
    out_of_range: OutOfRange
    kept: Collection[ir.Node] = ()
    single: set[ir.Node] = field(default_factory=set)
    state: set[ir.Value] = field(default_factory=set)

    def wanted(self, node: ir.Node, index: int) -> ir.DataType | None:
        """Return the type that a node's float input should have; None: any, as the node does not read its values."""
        if reads_any(node):
            return None
        if node in self.single or (not is_aggregation(node) and not takes_input(node, self.opset, index, self.dtype)):
            return ir.DataType.FLOAT
        if is_aggregation(node) and (
            node.inputs[index] in self.state or self._is_exact(node, input_names(node)[index])
        ):
            return ir.DataType.FLOAT
        return self.dtype

    def made(self, value: ir.Value) -> ir.DataType:
        """Return the type in which a float value is computed."""
        return ir.DataType.FLOAT if value in self.state or value.producer() in self.single else self.dtype

    def is_single_output(self, value: ir.Value) -> bool:
        """Return whether an output of the graph is float32, so that nothing of it is lost."""
        return value in self.state or value in self.out_of_range.values or value.producer() in self.kept

    def _is_exact(self, node: ir.Node, name: str) -> bool:
        group = next((group for group in _EXACT_INPUTS if name in group), ())
        values = [value for key, value in zip(input_names(node), node.inputs, strict=False) if key in group]
        return bool(group) and all(value is not None and self._is_float32(value) for value in values)

    def _is_float32(self, value: ir.Value) -> bool:
        return is_constant(value) or value.producer() in self.single


def plan_precision(
    model: ir.Model, dtype: ir.DataType, peaks: Mapping[str, float], kept: Collection[ir.Node] = ()
) -> PrecisionPlan:
    """Determine which nodes of a float32 graph stay in float32 when it is lowered to a half type.

    Args:
        model: the exporter's float32 graph, before functions are attached.
        dtype: FLOAT16 or BFLOAT16.
        peaks: magnitudes of values that were observed, by name.
        kept: nodes that are to stay in float32 in any case.
    """
    plan = PrecisionPlan(dtype, model.opset_imports[""], find_out_of_range(model, dtype, peaks), kept)
    plan.single.update(_table_nodes(model))
    plan.single.update(_angle_nodes(model))
    plan.state.update(_state_values(model))
    plan.single.update(node for node in model.graph if not is_aggregation(node) and plan.state & {*node.outputs})
    numbers: set[ir.Value] = set()
    for node in model.graph:
        inputs = [value for value in node.inputs if value is not None and is_float(value) and not is_constant(value)]
        if _is_number(node, inputs, numbers):
            numbers.update(node.outputs)
            plan.single.add(node)
        elif _is_single(node, inputs, plan):
            plan.single.add(node)
    return plan


def _is_single(node: ir.Node, inputs: list[ir.Value], plan: PrecisionPlan) -> bool:
    if reads_any(node):
        return False
    if node in plan.kept:
        return True
    outside = plan.out_of_range.values
    if any(value in outside for value in (*inputs, *node.outputs)):
        return True
    if is_aggregation(node):
        return False
    if any(attribute.type in _GRAPHS for attribute in node.attributes.values()):
        return True
    if node.op_type in RANGE_HUNGRY or not takes(node, plan.opset, plan.dtype):
        return True
    single = [value.producer() in plan.single for value in inputs if not is_exact_in_half(value)]
    if node.op_type in PROMOTING:
        return any(single)
    return node.op_type in FOLLOWING and bool(single) and all(single)


def _is_number(node: ir.Node, inputs: list[ir.Value], numbers: set[ir.Value]) -> bool:
    """Return whether a node computes with integers as numbers, for example positions, which a half type rounds."""
    if not any(is_float(value) for value in node.outputs):
        return False
    if node.op_type == "Cast" and not inputs:
        source = node.inputs[0]
        return source is not None and source.dtype != ir.DataType.BOOL
    return bool(inputs) and all(value in numbers for value in inputs)


def is_exact_in_half(value: ir.Value) -> bool:
    """Return whether a value is exact in half precision too: made from booleans, or a constant."""
    node = value.producer()
    if node is None or node.op_type not in {"Cast", "ConstantOfShape"}:
        return False
    source = node.inputs[0]
    return node.op_type == "ConstantOfShape" or (source is not None and source.dtype == ir.DataType.BOOL)


def _table_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that select rows of a rotation's tables, which are constants in the file and keep their type."""
    found: set[ir.Node] = set()
    for node in [*aggregation_nodes(model), *gated_nodes(model)]:
        for name, value in zip(input_names(node), node.inputs, strict=False):
            if name in {"cos", "sin"} and value is not None:
                found.update(_makers(value) or ())
    return found


def _angle_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that compute angles of sines and cosines element by element, from times and frequencies."""
    found: set[ir.Node] = set()
    waiting = [node.inputs[0] for node in model.graph if node.op_type in ANGLES]
    while waiting:
        value = waiting.pop()
        maker = value.producer() if value is not None else None
        if maker is not None and maker not in found and maker.op_type in FOLLOWING | PROMOTING:
            found.add(maker)
            waiting += filter(is_float, maker.inputs)
    return found


def _makers(value: ir.Value) -> set[ir.Node] | None:
    """Return the nodes that compute a value from constants and integers only; None if it depends on activations."""
    node = value.producer()
    if node is None:
        return set() if is_constant(value) else None
    found = {node}
    for source in filter(is_float, node.inputs):
        makers = _makers(source) if source is not None else None
        if makers is None:
            return None
        found |= makers
    return found


def _state_values(model: ir.Model) -> set[ir.Value]:
    """Return the floats from the graph's past to each aggregation, and from there to the graph's present."""
    found: set[ir.Value] = set()
    for node in [*aggregation_nodes(model), *gated_nodes(model)]:
        past = input_named(node, PAST_STATE)
        if past is None:
            continue
        pending = [past]
        while pending:
            value = pending.pop()
            maker = value.producer()
            found.add(value)
            if maker is not None:
                pending += [source for source in maker.inputs if source is not None and is_float(source)]
        pending = [node.outputs[1]]
        while pending:
            value = pending.pop()
            found.add(value)
            pending += [output for user, _ in value.uses() for output in user.outputs if is_float(output)]
    return found
