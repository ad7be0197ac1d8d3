"""Replace runs of nodes by fused nodes."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common

from pom_export.graph.loading import load_graph
from pom_export.graph.nodes import add_constant, take_place
from pom_export.graph.quantized.products import BLOCK_PRODUCT
from pom_export.runtime.fusing.constants import array_of
from pom_export.runtime.fusing.matching import steps_of
from pom_export.runtime.fusing.packing import pack_groups, pack_product
from pom_export.runtime.fusing.program import Program, write_program
from pom_export.runtime.fusing.runs import runs_of
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.states import with_whole_states
from pom_export.runtime.fusing.steps import Aggregate, GroupedProduct, Norm, Product, Step

DOMAIN: Final = "pom.runtime"
OPERATOR: Final = "FusedLayers"
_PREFIX: Final = "pom.runtime.weights"
# Names of weights are used once in a process: session options keep what they were given under a name.
_NUMBERS: Final = itertools.count()


@dataclass(frozen=True)
class Fused:
    """A rewritten graph.

    Attributes:
        model: the graph.
        weights: the packed weights, by the names of the initializers that hold them.
        operators: how many nodes of each operator the fused nodes replace.
    """

    model: ir.Model
    weights: Mapping[str, npt.NDArray[Any]]
    operators: Mapping[str, int]


def fused(model: ir.Model | str | os.PathLike[str]) -> Fused | None:
    """Return a graph with each run of nodes that has a product of quantized weights replaced by one node.

    Args:
        model: the graph, which is rewritten in place; or the path of a file, which stays as it is.

    Returns:
        The graph; None if it has no such run. Nothing but shapes were added to it then.
    """
    graph = model if isinstance(model, ir.Model) else load_graph(model)
    steps, shapes = steps_of(graph)
    if not any(isinstance(step, Product) for step in steps) and _lacks_shapes(graph):
        ir.passes.common.ShapeInferencePass()(graph)
        steps, shapes = steps_of(graph)
    runs = [with_whole_states(run) for run in runs_of(graph.graph, steps, shapes)]
    if not runs:
        return None
    weights = _Weights(graph.graph)
    nodes = {node for run in runs for step in run for node in step.nodes}
    programs = [_program(run, weights, shapes) for run in runs]
    made = [_node(run, program) for run, program in zip(runs, programs, strict=True)]
    for run, node in zip(runs, made, strict=True):
        graph.graph.insert_after(run[-1].nodes[-1], node)
    for program, node in zip(programs, made, strict=True):
        for old, new in zip(program.outputs, node.outputs, strict=True):
            take_place(old, new)
    _remove_unused(graph.graph, nodes)
    graph.graph.sort()
    graph.opset_imports.setdefault(DOMAIN, 1)
    return Fused(graph, weights.packed, Counter(node.op_type for node in nodes))


def _lacks_shapes(model: ir.Model) -> bool:
    """Return whether a product's input has no shape, as in files of tools that leave them out."""
    products = (node for node in model.graph if node.op_type == BLOCK_PRODUCT)
    return any(node.inputs and node.inputs[0] is not None and node.inputs[0].shape is None for node in products)


class _Weights:
    """The tensors that programs refer to, each packed once."""

    def __init__(self, graph: ir.Graph) -> None:
        self.packed: dict[str, npt.NDArray[Any]] = {}
        self._graph = graph
        self._known: dict[tuple[object, ...], ir.Value] = {}

    def of(self, step: Step) -> list[ir.Value | None]:
        """Return a step's weights, bias or gain, in the order of its instruction."""
        if isinstance(step, Product):
            return [self._product(step), self._vector(step.bias)]
        if isinstance(step, GroupedProduct):
            return [self._groups(step), self._vector(step.bias)]
        if isinstance(step, Norm):
            return [self._vector(step.gain), *([self._vector(step.bias)] if step.centered else [])]
        return []

    def _product(self, step: Product) -> ir.Value:
        key = (step.packed, step.scales, step.block, step.width)
        if key not in self._known:
            packed, scales = array_of(step.packed), array_of(step.scales)
            assert packed is not None
            assert scales is not None
            self._known[key] = self._add(pack_product(packed, scales, step.width, step.block, step.bits))
        return self._known[key]

    def _groups(self, step: GroupedProduct) -> ir.Value:
        key = (step.weight, step.groups)
        if key not in self._known:
            weight = array_of(step.weight)
            assert weight is not None
            self._known[key] = self._add(pack_groups(weight, step.groups))
        return self._known[key]

    def _add(self, array: npt.NDArray[Any]) -> ir.Value:
        value = add_constant(self._graph, f"{_PREFIX}.{next(_NUMBERS)}", array)
        assert value.name is not None
        self.packed[value.name] = array
        return value

    def _vector(self, value: ir.Value | None) -> ir.Value | None:
        """Return a constant with a single axis."""
        if value is None or (value.shape is not None and len(value.shape) == 1):
            return value
        if (value,) not in self._known:
            array = array_of(value)
            assert array is not None
            name = f"{value.name}.vector"
            self._known[value,] = add_constant(self._graph, name, np.ascontiguousarray(array.reshape(-1)))
        return self._known[value,]


def _program(run: Sequence[Step], weights: _Weights, shapes: Shapes) -> Program:
    """Return a run's program, and give what it makes types and shapes."""
    nodes = {node for step in run for node in step.nodes}
    outputs = [step.y for step in run if _is_used_outside(step.y, nodes)]
    for value in outputs:
        value.shape, value.type = shapes.declared(value), ir.TensorType(ir.DataType.FLOAT)
    for step in run:
        if isinstance(step, Aggregate) and step.states:
            state, length = step.states
            state.type, length.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)
    return write_program(run, outputs, {step: weights.of(step) for step in run})


def _node(run: Sequence[Step], program: Program) -> ir.Node:
    attributes = {
        "program": ir.AttrInt64s("program", list(program.numbers)),
        "constants": ir.AttrFloat32s("constants", list(program.constants)),
    }
    name = f"{run[-1].nodes[-1].name}/{OPERATOR}"
    return ir.node(
        OPERATOR, list(program.inputs), attributes, domain=DOMAIN, num_outputs=len(program.outputs), name=name
    )


def _is_used_outside(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(user not in nodes for user, _ in value.uses())


def _remove_unused(graph: ir.Graph, nodes: set[ir.Node]) -> None:
    """Remove nodes that were replaced, and the transpositions and initializers that only they used."""
    given = {value for node in nodes for value in node.inputs if value is not None}
    graph.remove([node for node in graph if node in nodes], safe=True)
    for value in given:
        maker = value.producer()
        if maker is not None and maker.graph is graph and not value.uses() and not value.is_graph_output():
            graph.remove(maker, safe=True)  # a transposition for several grouped products
        if value.is_initializer() and not value.uses() and not value.is_graph_output() and value.name is not None:
            graph.initializers.pop(value.name, None)
