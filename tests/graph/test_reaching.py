"""Outputs that depend on no input, and inputs that no output depends on, are reported."""

from __future__ import annotations

import onnx_ir as ir

from pom_export.graph.reaching import idle_notes


def test_outputs_of_no_input_and_inputs_of_no_output_are_named() -> None:
    x, y, mask = (ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT)) for name in ("x", "y", "mask"))
    constant = ir.node("Constant", [], {"value_float": 0.5})
    inner = ir.node("Neg", [y])
    branch = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="branch")
    chosen = ir.node("If", [x], {"then_branch": branch, "else_branch": branch.clone(allow_outer_scope_values=True)})
    for node, name in ((constant, "half"), (chosen, "chosen")):
        node.outputs[0].name = name
    outputs = [constant.outputs[0], chosen.outputs[0]]
    graph = ir.Graph([x, y, mask], outputs, nodes=[constant, chosen], opset_imports={"": 20}, name="graph")
    assert idle_notes(ir.Model(graph, ir_version=9)) == [
        "output half depends on no input: it is the same whatever is given",
        "no output depends on input mask",
    ]
