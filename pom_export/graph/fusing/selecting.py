"""Write gates as the passes that optimise exports expect them: one value a head, and a HardSigmoid as such."""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Evaluator
from pom_export.graph.fusing.features import tolerance_of
from pom_export.graph.fusing.tokens import layout_of, run_tokens
from pom_export.graph.nodes import add_constant, aggregation_nodes, only_user, take_place

# How far before a gate its values for heads, or its activation's input, are looked for.
_FARTHEST: Final = 8
_POINTS: Final = np.array([-50, -4, -3, -2.9, -1, -0.1, 0, 0.1, 1, 2.9, 3, 4, 50])


class PlainGatesPass(ir.passes.InPlacePass):
    """Simplify the gates that multiply aggregations.

    A gate that repeats its values for the channels of a head multiplies the heads instead, and whatever computes
    clamp(z / 6 + 1/2, 0, 1) becomes a HardSigmoid. Dead nodes are left to a later pass.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Change each such gate."""
        evaluator = Evaluator(model.graph)
        modified = False
        for node in aggregation_nodes(model):
            product = only_user(node.outputs[0])
            if product is not None and product.op_type == "Mul":
                gate = next((each for each in product.inputs if each is not node.outputs[0]), None)
                if gate is not None:
                    modified |= _simplify(evaluator, node.outputs[0], product, gate)
                    evaluator.forget()
        return ir.passes.PassResult(model, modified=modified)


def _simplify(evaluator: Evaluator, aggregate: ir.Value, product: ir.Node, gate: ir.Value) -> bool:
    values = _values_of(evaluator, gate)
    activated = _as_hardsigmoid(evaluator, values)
    if activated is gate:
        return False
    shape, own = list(aggregate.shape or ()), list(activated.shape or ())
    if own[-1] == shape[-1]:
        product.replace_input_with(list(product.inputs).index(gate), activated)
        return True
    graph, result = evaluator.graph, product.outputs[0]
    heads, channels = int(str(own[-1])), int(str(shape[-1]))
    sizes = add_constant(graph, f"{product.name}/heads", np.array([0, 0, heads, channels // heads], np.int64))
    last = add_constant(graph, f"{product.name}/axis", np.array([-1], np.int64))
    flat = add_constant(graph, f"{product.name}/channels", np.array([0, 0, channels], np.int64))
    width = channels // heads

    def add(op: str, inputs: list[ir.Value], sizes: list[int | ir.SymbolicDim]) -> ir.Value:
        node = ir.node(op, inputs, name=f"{product.name}/{op}{'_2' if inputs[-1] is flat else ''}")
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(sizes), result.type
        graph.insert_before(product, node)
        return node.outputs[0]

    folded = add("Reshape", [aggregate, sizes], [*shape[:2], heads, width])
    column = add("Unsqueeze", [activated, last], [*own, 1])
    selected = add("Mul", [folded, column], [*own[:2], heads, width])
    take_place(result, add("Reshape", [selected, flat], [*own[:2], channels]))
    graph.remove(product, safe=True)
    return True


def _values_of(evaluator: Evaluator, gate: ir.Value) -> ir.Value:
    """Return the value that a gate repeats for neighbouring channels, the farthest one; the gate itself if none."""
    layout, found = layout_of(gate, evaluator.axes), gate
    if layout is None or layout.axis != 1 or len(layout.channels) != 1:
        return gate
    for value in evaluator.sources(gate, _FARTHEST)[1:]:
        own = layout_of(value, evaluator.axes)
        if own is None or len(own.channels) != 1 or own.axis != 1 or layout.width % own.width:
            continue
        if list(value.shape or ())[:2] != list(gate.shape or ())[:2] or value.dtype != gate.dtype:
            continue
        tokens = np.random.default_rng(0).standard_normal((6, own.width))
        made = run_tokens(evaluator, value, own, tokens, [gate], batch=2).get(gate)
        if made is not None and np.array_equal(made, np.repeat(tokens, layout.width // own.width, axis=1)):
            found = value
    return found


def _as_hardsigmoid(evaluator: Evaluator, gate: ir.Value) -> ir.Value:
    """Return a gate as the output of a HardSigmoid, if it is one in other operators; else the gate itself."""
    layout, node = layout_of(gate, evaluator.axes), gate.producer()
    if layout is None or node is None or node.op_type in {"HardSigmoid", "Sigmoid"}:
        return gate
    for value in evaluator.sources(gate, _FARTHEST)[1:]:
        if value.shape is None or list(value.shape) != list(gate.shape or ()) or value.dtype != gate.dtype:
            continue
        tokens = np.repeat(_POINTS[:, None], layout.width, 1)
        made = run_tokens(evaluator, value, layout, tokens, [gate]).get(gate)
        close = tolerance_of(gate)
        if made is not None and np.allclose(made, np.clip(tokens / 6 + 0.5, 0, 1), rtol=close, atol=close):
            activated = ir.node("HardSigmoid", [value], {"alpha": 1 / 6, "beta": 0.5}, name=f"{node.name}/HardSigmoid")
            activated.outputs[0].shape, activated.outputs[0].type = gate.shape, gate.type
            evaluator.graph.insert_after(node, activated)
            return activated.outputs[0]
    return gate
