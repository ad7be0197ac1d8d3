"""Write out what other runtimes shorten: the exact GELU, and CumSum's axis and flags."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.nodes import add_constant, take_place
from pom_export.graph.opsets import STANDARD_DOMAINS

_HALVES: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_FLAGS: Final = ("exclusive", "reverse")


class SpellOutPass(ir.passes.InPlacePass):
    """Replace operators that some runtimes compute in another way than the standard says by ones that they get right.

    Gelu becomes x / 2 (1 + erf(x / sqrt 2)), in float32: it is newer than most converters, and MNN computes it with an
    approximation. In this order MNN computes what it says, and ONNX Runtime makes it a single node again. CumSum gets
    an axis of rank 0, which onnx's reference evaluator requires, and both flags, which onnx2torch takes for 1 if they
    are missing.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the nodes."""
        changed, constants = False, _Constants(model.graph)
        for node in list(model.graph.all_nodes()):
            if node.domain not in STANDARD_DOMAINS:
                continue
            if node.op_type == "CumSum":
                changed |= _spell_cumsum(node, constants)
            elif node.op_type == "Gelu" and _is_exact(node):
                _spell_gelu(node, constants)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


class _Constants:
    """Scalars among a graph's initializers, each added once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._values: dict[str, ir.Value] = {}

    def get(self, name: str, value: float, dtype: ir.DataType) -> ir.Value:
        """Return the value of a scalar; its name includes its type."""
        name = f"{name}_{dtype.name.lower()}"
        if name not in self._values:
            self._values[name] = add_constant(self._graph, name, np.array(value, dtype=dtype.numpy()))
        return self._values[name]


def _spell_cumsum(node: ir.Node, constants: _Constants) -> bool:
    """Give a CumSum a 0-D axis, if it is a constant, and both flags; return whether anything changed."""
    missing = [flag for flag in _FLAGS if flag not in node.attributes]
    for flag in missing:
        node.attributes[flag] = ir.AttrInt64(flag, 0)
    axis = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    if axis is None or not len(axis.shape):
        return bool(missing)
    number = int(axis.numpy().reshape(()))
    node.replace_input_with(1, constants.get(f"axis_{number}", number, axis.dtype))
    return True


def _is_exact(node: ir.Node) -> bool:
    approximate = node.attributes.get("approximate")
    return approximate is None or approximate.as_string() == "none"


def _spell_gelu(node: ir.Node, constants: _Constants) -> None:
    """Replace an exact Gelu by the operators of its definition, in float32 if its type is half precision."""
    (x,), y, graph = node.inputs, node.outputs[0], node.graph
    assert x is not None
    assert isinstance(graph, ir.Graph)
    given = y.dtype or ir.DataType.FLOAT
    kind = ir.DataType.FLOAT if given in _HALVES else given
    nodes: list[ir.Node] = []

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        to = given if op_type == "Cast" and nodes else kind
        attributes = [ir.AttrInt64("to", to)] if op_type == "Cast" else []
        made = ir.Node("", op_type, inputs, attributes, name=f"{node.name or y.name}/{op_type}_{len(nodes)}")
        made.outputs[0].name = f"{y.name}_{op_type.lower()}_{len(nodes)}"
        made.outputs[0].shape, made.outputs[0].type = y.shape, ir.TensorType(to)
        nodes.append(made)
        return made.outputs[0]

    wide = x if kind == given else add("Cast", x)
    error = add("Erf", add("Div", wide, constants.get("sqrt_2", 2**0.5, kind)))
    halved = add("Mul", wide, constants.get("half", 0.5, kind))
    result = add("Mul", halved, add("Add", error, constants.get("one", 1.0, kind)))
    result = result if kind == given else add("Cast", result)
    graph.insert_before(node, nodes)
    take_place(y, result)
    graph.remove(node)
