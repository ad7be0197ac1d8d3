"""Graphs are written as the op needs them before they are searched, and put back where nothing came of it."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from pom_export.graph.fusing import Findings, find_aggregations
from pom_export.graph.fusing.preparing import Prepared
from tests.plain_graphs import ACTIVATIONS, MASKED, POLYNOMIALS, as_graph, parsed, plain_graph

_MEAN = "y = ReduceMean<keepdims = 1>(p, at1)"


def factors(nodes: str) -> onnx.ModelProto:
    """Return a graph of nodes with the projections a_, b_ and c_ of x."""
    projections = "a_ = MatMul(x, context) b_ = MatMul(x, gate) c_ = MatMul(x, context_c)"
    model = parsed("float[batch, tokens, 4] x", "y", f"{projections} {nodes}")
    model.graph.initializer.append(onnx.helper.make_tensor("context_c", onnx.TensorProto.FLOAT, (4, 6), [0.5] * 24))
    return model


def prepared(model: onnx.ModelProto) -> tuple[ir.Graph, Findings]:
    graph = as_graph(model)
    Prepared(graph)
    return graph, find_aggregations(graph)


_GELUS = "a = Gelu(a_) b = Gelu(b_) c = Gelu(c_)"
_THREE = {
    "in order": f"{_GELUS} ab = Mul(a, b) abc = Mul(ab, c) p = Concat<axis = -1>(a, ab, abc) {_MEAN}",
    "written out": f"{_GELUS} ab = Mul(a, b) n = Mul(a, b) abc = Mul(c, n) p = Concat<axis = 2>(a, ab, abc) {_MEAN}",
    "averaged one by one": f"""{_GELUS} ab = Mul(b, a) abc = Mul(ab, c) ma = ReduceMean<keepdims = 1>(a, at1)
        mb = ReduceMean<keepdims = 1>(ab, at1) mc = ReduceMean<keepdims = 1>(abc, at1)
        y = Concat<axis = -1>(ma, mb, mc)""",
}


@pytest.mark.parametrize("kind", _THREE)
def test_factors_with_projections_of_their_own(kind: str) -> None:
    _, findings = prepared(factors(_THREE[kind]))

    (found,) = findings.found
    assert (found.features.degree, found.aggregate.mode, findings.left) == (3, "mean", {})
    joined = found.features.x.producer()
    assert joined is not None
    assert (joined.op_type, [each.name for each in joined.inputs if each is not None]) == ("Concat", ["a_", "b_", "c_"])


def test_factors_in_another_order_than_the_file() -> None:
    nodes = f"b = Gelu(b_) a = Gelu(a_) ba = Mul(b, a) p = Concat<axis = -1>(b, ba) {_MEAN}"

    _, findings = prepared(factors(nodes))

    joined = findings.found[0].features.x.producer()
    assert joined is not None
    assert [each.name for each in joined.inputs if each is not None] == ["b_", "a_"]


def test_factors_of_another_activation_are_named() -> None:
    nodes = f"""s = Sigmoid(a_) a = Mul(a_, s) t = Sigmoid(b_) b = Mul(b_, t) ab = Mul(a, b)
        p = Concat<axis = -1>(a, ab) {_MEAN}"""

    _, findings = prepared(factors(nodes))

    assert not findings.found
    assert list(findings.left.values()) == ["its activation is not GELU with erf: of 2 it is 1.76159, not 1.9545"]


@pytest.mark.parametrize(
    "nodes",
    [
        f"{_GELUS} ab = Add(a, b) p = Concat<axis = -1>(a, ab) {_MEAN}",
        f"{_GELUS} ab = Mul(a, b) p = Concat<axis = -1>(ab, ab) {_MEAN}",
        f"{_GELUS} ab = Mul(a, b) p = Concat<axis = -1>(ab, a) {_MEAN}",
        f"{_GELUS} ab = Mul(a, b) aac = Mul(a, c) p = Concat<axis = -1>(a, ab, aac) {_MEAN}",
    ],
    ids=["a sum", "only products", "the product first", "a factor left out"],
)
def test_other_combinations_of_factors(nodes: str) -> None:
    graph = as_graph(factors(nodes))
    before = sorted((node.op_type, [each.name for each in node.inputs if each is not None]) for node in graph)

    change = Prepared(graph)
    findings = find_aggregations(graph)
    change.put_back()

    assert not findings.found
    after = sorted((node.op_type, [each.name for each in node.inputs if each is not None]) for node in graph)
    assert after == before


_AFTER = {
    "number": f"""{MASKED["bool"][1].replace("y = Div(q_, d_)", "")} s = MatMul(x, gate)
        g_ = HardSigmoid<alpha = 0.16666667>(s) w = Mul(g_, q_) z = Div(w, d_)""",
    "reciprocal": f"""{MASKED["bool"][1].replace("y = Div(q_, d_)", "")} s = MatMul(x, gate)
        g_ = HardSigmoid<alpha = 0.16666667>(s) w = Mul(q_, g_) r_ = Reciprocal(d_) z = Mul(r_, w)""",
}


@pytest.mark.parametrize("kind", _AFTER)
def test_sums_that_are_divided_after_the_gate(kind: str) -> None:
    nodes = f"u = MatMul(x, context) {ACTIVATIONS['max']} {POLYNOMIALS['horner']} {_AFTER[kind]} y = MatMul(z, out)"
    model = parsed("float[batch, tokens, 4] x, bool[batch, tokens] mask", "float[batch, tokens, 4] y", nodes)

    _, findings = prepared(model)

    (found,) = findings.found
    assert (found.aggregate.mode, found.aggregate.mask is not None, findings.left) == ("mean", True, {})


def test_divisions_of_other_products_are_put_back() -> None:
    nodes = """
        six_ = Constant<value_float = 6.0>() u = MatMul(x, context) r = ReduceSum<keepdims = 1>(u, at1)
        s = MatMul(x, gate) w = Mul(s, r) y = Div(w, six_)"""
    model = parsed("float[batch, tokens, 4] x", "y", nodes)
    graph = as_graph(model)
    written = [str(node) for node in graph]

    change = Prepared(graph)
    moved = [node.op_type for node in graph]
    common.RemoveUnusedNodesPass()(ir.Model(graph, ir_version=8))
    change.put_back()

    assert moved.index("Div") < moved.index("Mul")
    assert [str(node) for node in graph] == written


def test_a_part_of_a_product_is_no_product() -> None:
    nodes = """
        a_, b_ = Split<axis = -1, num_outputs = 2>(u) a = Gelu(a_) b = Gelu(b_) ab = Mul(a, b)
        d = ReduceMean<keepdims = 1>(a, at1) e = ReduceMean<keepdims = 1>(ab, at1) y = Concat<axis = -1>(d, e)"""

    findings = find_aggregations(as_graph(plain_graph("", "", nodes)))

    assert [(found.features.degree, found.features.x.name) for found in findings.found] == [(2, "u")]
