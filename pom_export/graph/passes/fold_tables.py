"""Look up the rows of rotation tables at export, where positions are constant."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator

import numpy as np
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator

from pom_export.graph.nodes import aggregation_nodes, gated_nodes, input_named
from pom_export.graph.precision.rules import is_constant, is_float

# Ops that look up rows, cut columns or concatenate tables.
_MOVING = frozenset(("Concat", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Squeeze", "Unsqueeze"))


class FoldTablesPass(ir.passes.InPlacePass):
    """Replace table rows that are looked up by constant positions with a constant, shared by all equal rotations.

    The exporter only folds small ones. A large image then has one table for all of its blocks instead of a look-up in
    each.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold each such look-up, and share equal tables."""
        tables = _Tables(model)
        for node in list(model.graph):
            tables.fold(node)
        return ir.passes.PassResult(model, modified=tables.modified)


class _Tables:
    """The constants that rotations are computed from, by content."""

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.opset = model.opset_imports[""]
        self.modified = False
        self.known: set[ir.Value] = set()
        self.by_content: dict[Hashable, ir.Value] = {}
        self.folded: dict[Hashable, ir.Value] = {}
        for value in dict.fromkeys(_sources(model)):
            self.known.add(self._shared(value))

    def fold(self, node: ir.Node) -> None:
        """Replace the output of a node that does nothing but move values of tables."""
        inputs = [value for value in node.inputs if value is not None]
        if node.domain or node.op_type not in _MOVING or not all(map(is_constant, inputs)):
            return
        output = node.outputs[0]
        if not is_float(output) or output.is_graph_output():
            return
        if not all(value in self.known for value in inputs if is_float(value)):
            return
        attributes = tuple(sorted((name, str(given.value)) for name, given in node.attributes.items()))
        key = (node.op_type, attributes, *(_content(value) for value in inputs))
        if key not in self.folded:
            self.folded[key] = self._shared(self._add(node))
        constant = self.folded[key]
        self.known.add(constant)
        ir.convenience.replace_all_uses_with(output, constant)
        self.graph.remove(node, safe=True)
        self.modified = True

    def _add(self, node: ir.Node) -> ir.Value:
        array = _evaluate(node, self.opset)
        constant = ir.val(f"{node.outputs[0].name}", const_value=ir.tensor(array))
        node.outputs[0].name = None
        self.graph.register_initializer(constant)
        return constant

    def _shared(self, value: ir.Value) -> ir.Value:
        """Replace a value by the first table with the same content, and return that table."""
        first = self.by_content.setdefault(_content(value), value)
        if first is not value:
            ir.convenience.replace_all_uses_with(value, first)
            del self.graph.initializers[value.name or ""]
            self.modified = True
        return first


def _sources(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the constants that the aggregations' tables are, or are taken from."""
    for node in [*aggregation_nodes(model), *gated_nodes(model)]:
        waiting = [input_named(node, name) for name in ("cos", "sin")]
        while waiting:
            value = waiting.pop()
            if value is None or not is_float(value):
                continue
            maker = value.producer()
            if maker is not None:
                waiting += maker.inputs if maker.op_type in _MOVING else []
            elif is_constant(value):
                yield value


def _content(value: ir.Value) -> Hashable:
    assert value.const_value is not None
    array = value.const_value.numpy()
    return array.dtype.str, array.shape, hashlib.sha256(array.tobytes()).digest()


def _evaluate(node: ir.Node, opset: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    inputs = [value for value in node.inputs if value is not None]
    feeds = {value.name or "": value.const_value.numpy() for value in inputs if value.const_value is not None}
    proto = ir.to_proto(node)
    function = helper.make_function("local", "f", [*feeds], proto.output, [proto], [helper.make_opsetid("", opset)])
    (array,) = ReferenceEvaluator(function).run(None, feeds, attributes={})
    return np.ascontiguousarray(array)
