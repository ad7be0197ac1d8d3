"""Find the steps in a graph, each as small as it can be."""

from __future__ import annotations

import onnx_ir as ir

from pom_export.graph.nodes import op_of
from pom_export.runtime.fusing.aggregates import aggregate
from pom_export.runtime.fusing.elementwise import elementwise
from pom_export.runtime.fusing.norms import named_norm, rms_norm, scaled_norm
from pom_export.runtime.fusing.products import biased, block_product, grouped_product
from pom_export.runtime.fusing.shapes import Shapes
from pom_export.runtime.fusing.steps import Step

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def steps_of(model: ir.Model) -> tuple[list[Step], Shapes]:
    """Return the steps that a graph's nodes make, in order, and the shapes of what they make.

    A node is in at most one step. The nodes in functions and in nested graphs are left alone.
    """
    shapes, made = Shapes(model.graph), dict[ir.Value, Step]()
    for node in model.graph:
        step = _step(node, shapes, made, model)
        if step is None:
            continue
        for inner in step.nodes[:-1]:  # a step that is a part of this one
            made.pop(inner.outputs[0], None)
        made[step.y] = step
        shapes.make(step.y, step.x, step.width)
    return list(made.values()), shapes


def _step(node: ir.Node, shapes: Shapes, made: dict[ir.Value, Step], model: ir.Model) -> Step | None:
    """Return the largest step that ends with a node; None if there is none."""
    if (op_of(node) is None and node.op_identifier() in model.functions) or any(
        attribute.type in _GRAPHS for attribute in node.attributes.values()
    ):
        return None
    if node.domain:
        return aggregate(node, shapes) or block_product(node, shapes)
    return (
        named_norm(node, shapes)
        or (scaled_norm(node, made) if node.op_type == "Mul" else None)
        or (rms_norm(node, shapes) if node.op_type in {"Mul", "Div"} else None)
        or biased(node, made)
        or grouped_product(node, shapes)
        or elementwise(node, shapes)
    )
