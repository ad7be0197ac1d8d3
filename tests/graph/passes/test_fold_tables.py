"""Rotation tables are constants of the file if the positions are, and are stored once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from pom_export import contract
from pom_export.graph.passes import FoldTablesPass
from pom_export.graph.schema import attributes

TOKENS, WIDTH = 5, 4


def constant(graph: list[ir.Value], name: str, array: np.ndarray) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array))
    graph.append(value)
    return value


def graph_of(rows: Callable[[list[ir.Value], int], ir.Value], mixers: int = 2, tables: int = 1) -> ir.Model:
    """Return a graph of mixers with a table each; the tables have `tables` different values."""
    x = ir.val("x", ir.DataType.FLOAT, ["batch", TOKENS, 2 * WIDTH])
    weights: list[ir.Value] = []
    coefficients = constant(weights, "coefficients", np.ones((2 * WIDTH, 2), np.float32))
    nodes, y = [], x
    inputs = [x]
    for mixer in range(mixers):
        looked_up = []
        for kind in ("cos", "sin"):
            content = np.arange(9 * WIDTH, dtype=np.float32).reshape(9, WIDTH) + mixer % tables + (kind == "sin") / 2
            table, index = constant(weights, f"{mixer}.{kind}", content), rows(weights, mixer)
            if not index.is_initializer() and index not in inputs:
                inputs.append(index)
            nodes.append(ir.node("Gather", [table, index], {"axis": 0}, name=f"{mixer}/{kind}"))
            looked_up.append(nodes[-1].outputs[0])
            looked_up[-1].name, looked_up[-1].type = f"{mixer}_{kind}", ir.TensorType(ir.DataType.FLOAT)
        mask = constant(weights, f"mask{mixer}", np.ones(1, bool))
        values = attributes("mean", 0.0, degree=0, rotary_blocks=1)
        node = ir.node(contract.OP_NAME, [y, coefficients, mask, *looked_up], values, domain=contract.DOMAIN)
        nodes.append(node)
        y = node.outputs[0]
        y.name, y.type = f"y{mixer}", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, [y], nodes=nodes, initializers=weights, opset_imports={"": 20, contract.DOMAIN: 1})
    return ir.Model(graph, ir_version=10)


def of_constants(weights: list[ir.Value], _: int) -> ir.Value:
    return constant(weights, f"rows{len(weights)}", np.arange(TOKENS))


def aggregations(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.domain == contract.DOMAIN]


@pytest.mark.parametrize("tables", [1, 2])
def test_rows_of_constant_positions_are_constants_stored_once(tables: int) -> None:
    model = graph_of(of_constants, mixers=4, tables=tables)
    assert FoldTablesPass()(model).modified
    assert not [node for node in model.graph if node.op_type == "Gather"]
    cosines = [node.inputs[3] for node in aggregations(model)]
    assert len({id(value) for value in cosines}) == tables
    for number, value in enumerate(cosines):
        expected = np.arange(TOKENS * WIDTH).reshape(TOKENS, WIDTH) + number % tables
        assert value is not None
        assert model.graph.initializers[value.name or ""] is value
        np.testing.assert_array_equal(value.const_value.numpy(), expected)


def test_rows_of_an_inputs_positions_are_looked_up_when_the_model_runs() -> None:
    positions = ir.val("positions", ir.DataType.INT64, [TOKENS])
    model = graph_of(lambda *_: positions)
    FoldTablesPass()(model)
    assert len([node for node in model.graph if node.op_type == "Gather"]) == 4
    # Tables of equal contents are stored once nevertheless.
    assert len({id(node.inputs[0]) for node in model.graph if node.op_type == "Gather"}) == 2


def test_other_weights_stay_where_they_are() -> None:
    model = graph_of(of_constants)
    embedding = ir.val("embedding", const_value=ir.tensor(np.ones((3, 2), np.float32)))
    index = ir.val("index", const_value=ir.tensor(np.array([1])))
    for value in (embedding, index):
        model.graph.register_initializer(value)
    gather = ir.node("Gather", [embedding, index], {"axis": 0})
    gather.outputs[0].type, gather.outputs[0].name = ir.TensorType(ir.DataType.FLOAT), "looked_up"
    model.graph.insert_before(model.graph[0], gather)
    model.graph.outputs.append(gather.outputs[0])
    FoldTablesPass()(model)
    assert gather in list(model.graph)
