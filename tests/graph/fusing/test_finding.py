"""Aggregations are found however they are written, with the weights of the graph; what is almost one is named."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from pom_export.graph.fusing import Findings, find_aggregations
from tests.plain_graphs import (
    ACTIVATIONS,
    AGGREGATES,
    CAUSAL,
    MASKED,
    POLYNOMIALS,
    as_graph,
    parsed,
    plain_graph,
    weights,
)


def check_is_mean(findings: Findings, mode: str = "mean") -> None:
    """Check that there is one aggregation of the mode, with exactly the coefficients of the graph."""
    (found,) = findings.found
    assert not findings.left
    assert (found.aggregate.mode, found.features.x.name) == (mode, "u")
    assert found.features.coefficients is not None
    assert found.features.coefficients.array.tobytes() == weights()["coefficients"].tobytes()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_activation(activation: str) -> None:
    check_is_mean(find_aggregations(as_graph(plain_graph(ACTIVATIONS[activation]))))


@pytest.mark.parametrize("polynomial", POLYNOMIALS)
def test_the_polynomial(polynomial: str) -> None:
    check_is_mean(find_aggregations(as_graph(plain_graph(polynomial=POLYNOMIALS[polynomial]))))


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_the_aggregate(aggregate: str) -> None:
    mode = "causal" if aggregate in CAUSAL else "mean"
    check_is_mean(find_aggregations(as_graph(plain_graph(aggregate=AGGREGATES[aggregate]))), mode)


@pytest.mark.parametrize("kind", MASKED)
def test_a_mask(kind: str) -> None:
    dtype, nodes = MASKED[kind]

    findings = find_aggregations(as_graph(plain_graph(aggregate=nodes, mask=dtype)))

    check_is_mean(findings)
    aggregate = findings.found[0].aggregate
    assert aggregate.mask is not None
    # The mask itself, not what was made of it, unless that is another one.
    assert aggregate.mask.value.name == ("k_" if kind == "inverted" else "mask")
    assert aggregate.epsilon == pytest.approx(1e-6 if kind == "epsilon" else 0)
    assert aggregate.empty == ("0" if kind in {"integers", "epsilon"} else "NaN")


def test_a_mask_of_padding_that_is_not_inverted() -> None:
    nodes = """
        e_ = Unsqueeze(mask, last) w_ = Where(e_, zero, p) q_ = ReduceSum<keepdims = 1>(w_, at1) k_ = Not(mask)
        m_ = Cast<to = 1>(k_) s_ = ReduceSum<keepdims = 1>(m_, last) d_ = Unsqueeze(s_, last) y = Div(q_, d_)"""

    findings = find_aggregations(as_graph(plain_graph(aggregate=nodes, mask="bool")))

    check_is_mean(findings)
    mask = findings.found[0].aggregate.mask
    assert mask is not None
    assert (mask.value.name, mask.inverted) == ("mask", True)


@pytest.mark.parametrize(("mode", "mask"), [("mean", "float"), ("causal", "bool")])
def test_what_is_added_to_the_weights_of_a_fixed_number_of_tokens(mode: str, mask: str) -> None:
    operator = "CumSum({}, one)" if mode == "causal" else "ReduceSum<keepdims = 1>({}, at1)"
    cast = "m_ = Cast<to = 1>(mask)" if mask == "bool" else "m_ = Identity(mask)"
    nodes = f"""
        {cast} e_ = Unsqueeze(m_, last) w_ = Mul(p, e_) q_ = {operator.format("w_")} s_ = {operator.format("e_")}
        d_ = Add(s_, small) y = Div(q_, d_)"""
    model = plain_graph(aggregate=nodes, mask=mask)
    for given, sizes in zip(model.graph.input, [(2, 5, 4), (2, 5)], strict=True):
        for dim, size in zip(given.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    del model.graph.output[0].type.tensor_type.shape.dim[:]

    findings = find_aggregations(as_graph(model))

    check_is_mean(findings, mode)
    assert findings.found[0].aggregate.epsilon == pytest.approx(1e-6)


def test_earlier_tokens_that_a_mask_keeps() -> None:
    nodes = """
        e_ = Unsqueeze(mask, last) m_ = Cast<to = 1>(e_) w = Mul(p, m_) q = CumSum(w, one) d = CumSum(m_, one)
        k = Clip(d, small) y = Div(q, k)"""

    findings = find_aggregations(as_graph(plain_graph(aggregate=nodes, mask="bool")))

    check_is_mean(findings, "causal")
    assert findings.found[0].aggregate.mask is not None


def test_a_mask_for_each_pair_leaves_the_product() -> None:
    model = parsed(
        "float[batch, tokens, 4] x, float[batch, queries, tokens] mask",
        "float[batch, queries, 6] y",
        f"""u = MatMul(x, context) {ACTIVATIONS["leaky_relu"]} {POLYNOMIALS["horner"]} q = MatMul(mask, p)
        d_ = ReduceSum<keepdims = 1>(mask, last) y = Div(q, d_)""",
    )

    (found,) = find_aggregations(as_graph(model)).found

    assert (found.aggregate.mode, found.aggregate.value.name) == ("features", "p")


@pytest.mark.parametrize(
    ("degree", "nodes"),
    [
        (3, "g = Gelu(u) a, b, c = Split<axis = -1, num_outputs = 3>(g) ab = Mul(a, b) abc = Mul(ab, c)"
            " p = Concat<axis = -1>(a, ab, abc)"),
        (2, "a0, b0 = Split<axis = -1, num_outputs = 2>(u) a = Gelu(a0) b = Gelu(b0) ab = Mul(b, a)"
            " p = Concat<axis = 2>(a, ab)"),
        (3, "t = Mul(u, root) f = Erf(t) k = Add(f, one_float) v = Mul(u, k) g = Mul(v, half)"
            " a, b, c = Split<axis = 2, num_outputs = 3>(g) ab = Mul(a, b) abc = Mul(ab, c)"
            " p = Concat<axis = -1>(a, ab, abc)"),
    ],
    ids=["activated first", "in chunks", "by erf"],
)  # fmt: skip
def test_products(degree: int, nodes: str) -> None:
    nodes = nodes.replace("root", "r_").replace("half", "h_")
    constants = "r_ = Constant<value_float = 0.70710678>() h_ = Constant<value_float = 0.5>()"

    (found,) = find_aggregations(as_graph(plain_graph(constants, nodes))).found

    assert (found.features.degree, found.features.coefficients, found.features.x.name) == (degree, None, "u")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("l = LeakyRelu<alpha = 0.01>(u) h = Clip(l, low, five)", "its activation clamps at 5, not at 6"),
        ("h = Clip(u, low, high)", "its activation of -1 is -0.1, not -0.01: the leaky slope differs"),
        (
            "l = LeakyRelu<alpha = 0.02>(u) h = Clip(l, low, high)",
            "its activation of -1 is -0.02, not -0.01: the leaky",
        ),
        ("l = LeakyRelu<alpha = 0.01>(u) h = Min(l, high)", "its activation has no lower clamp, which must be at -0.1"),
        ("h = LeakyRelu<alpha = 0.01>(u)", "its activation has no upper clamp, which must be at 6"),
    ],
)
def test_almost_the_activation(nodes: str, reason: str) -> None:
    findings = find_aggregations(as_graph(plain_graph(nodes)))

    assert not findings.found
    ((node, found),) = findings.left.items()
    assert found.startswith(reason)
    assert node in {"Clip_2", "Clip_1", "LeakyRelu_1", "Min_2"}


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = ReduceMean<keepdims = 1>(p, last)", "it takes the mean over its channels, not over its tokens"),
        ("y = ReduceMean<keepdims = 1>(p, first)", "it takes the mean over the batch, not over its tokens"),
        ("y = ReduceSum<keepdims = 1>(p, at1)", "it takes the sum over its tokens, not the mean"),
        ("y = ReduceMax<keepdims = 1>(p, at1)", "it takes the largest of its tokens, not the mean"),
        ("r = Relu(p) y = ReduceMean<keepdims = 1>(r, at1)", "what follows its features is not a mean over tokens"),
        (
            "r = Clip(p, minus_ten, high) y = ReduceMean<keepdims = 1>(r, at1)",
            "what follows its features is not a mean over tokens",
        ),
        ("y = CumSum(p, one)", "it takes the sum over the earlier tokens, not divided by their number"),
        (
            "q = ReduceSum<keepdims = 1>(p, at1) y = Div(q, two)",
            "it takes the sum over its tokens, divided by 2 at 6 tokens, not by their number",
        ),
        (
            """shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one) i = Unsqueeze(range, at1)
            j = Unsqueeze(range, first) keep = LessOrEqual(i, j) w = Cast<to = 1>(keep) q = MatMul(w, p)
            d = ReduceSum<keepdims = 1>(w, last) y = Div(q, d)""",
            "it takes the mean over the later tokens, not over the earlier ones",
        ),
        (
            """shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one) i = Unsqueeze(range, at1)
            j = Unsqueeze(range, first) keep = Greater(i, j) w = Cast<to = 1>(keep) q = MatMul(w, p)
            s_ = ReduceSum<keepdims = 1>(w, last) d = Max(s_, one_float) y = Div(q, d)""",
            "it takes the mean over the tokens before each, without the token itself",
        ),
        (
            """shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one) i = Unsqueeze(range, at1)
            j = Unsqueeze(range, first) sofar = GreaterOrEqual(i, j) far = Sub(i, j) near = Less(far, window)
            keep = And(sofar, near) w = Cast<to = 1>(keep) q = MatMul(w, p) d = ReduceSum<keepdims = 1>(w, last)
            y = Div(q, d)""",
            "it is a mean of the earlier tokens at 6 tokens, but not at 513",
        ),
        (
            """shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one) i = Unsqueeze(range, at1)
            j = Unsqueeze(range, first) sofar = GreaterOrEqual(i, j) far = Sub(i, j) f = Cast<to = 1>(far)
            root = Sqrt(f) near = Less(root, r60) keep = And(sofar, near) w = Cast<to = 1>(keep) q = MatMul(w, p)
            d = ReduceSum<keepdims = 1>(w, last) y = Div(q, d)""",
            "Sqrt of positions is part of its weights: where they end is not certain",
        ),
    ],
)
def test_almost_a_mean(nodes: str, reason: str) -> None:
    nodes = nodes.replace("r60", "r_")
    constant = "r_ = Constant<value_float = 60.0>()" if "r_" in nodes else ""

    findings = find_aggregations(as_graph(plain_graph(aggregate=f"{constant} {nodes}")))

    assert not findings.found
    (found,) = findings.left.values()
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = ReduceMean<keepdims = 1>(w_, at1)", "divided by the number of all tokens, not of those"),
        ("y = ReduceSum<keepdims = 1>(w_, at1)", "not the mean"),
        ("q_ = ReduceSum<keepdims = 1>(w_, at1) y = Mul(q_, two)", "divided by 0.5 at 6 tokens, not by their number"),
    ],
)
def test_almost_a_mean_of_what_a_mask_keeps(nodes: str, reason: str) -> None:
    masked = "m_ = Cast<to = 1>(mask) e_ = Unsqueeze(m_, last) w_ = Mul(p, e_)"

    findings = find_aggregations(as_graph(plain_graph(aggregate=f"{masked} {nodes}", mask="bool")))

    assert not findings.found
    assert list(findings.left.values()) == [f"it takes the sum over the tokens that its mask keeps, {reason}"]


def test_a_running_sum_of_an_earlier_call() -> None:
    nodes = f"""
        u = MatMul(x, context) {ACTIVATIONS["leaky_relu"]} {POLYNOMIALS["horner"]} q = CumSum(p, one)
        s = Unsqueeze(past, at1) r = Add(q, s) k = Unsqueeze(count, last) y = Div(r, k)"""
    inputs = "float[batch, tokens, 4] x, float[batch, 6] past, float[batch, tokens] count"

    findings = find_aggregations(as_graph(parsed(inputs, "float[batch, tokens, 6] y", nodes)))

    assert not findings.found
    assert next(iter(findings.left.values())).startswith("the input past is added to its sum over tokens, as in a")


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        (
            "a = Mul(h, c1) b = Mul(h, h) c = Mul(b, c2) d_ = Add(a, c) p = Add(d_, one_float)",
            "a constant term, up to 1",
        ),
        ("e = Pow(h, power17) a = Mul(e, c1) b = Mul(h, c2) p = Add(a, b)", "of degree 17, and the op takes up to 16"),
    ],
)
def test_almost_a_polynomial(nodes: str, reason: str) -> None:
    constant = "power17 = Constant<value_float = 17.0>()" if "17" in nodes else ""

    findings = find_aggregations(as_graph(plain_graph(polynomial=f"{constant} {nodes}")))

    assert not findings.found
    assert reason in next(iter(findings.left.values()))


def test_almost_a_product() -> None:
    nodes = """
        g = Gelu<approximate = "tanh">(u) a, b = Split<axis = -1, num_outputs = 2>(g) ab = Mul(a, b)
        p = Concat<axis = -1>(a, ab)"""

    findings = find_aggregations(as_graph(plain_graph("", nodes)))

    assert (findings.found, list(findings.left.values())) == ([], ["its activation is GELU by tanh, not with erf"])


def test_an_ordinary_network_has_none() -> None:
    nodes = """
        u = MatMul(x, context) g = Gelu(u) r = Relu(g) c = Clip(r, low, high) m = ReduceMean<keepdims = 1>(c, at1)
        y = MatMul(m, out)"""

    findings = find_aggregations(as_graph(parsed("float[batch, tokens, 4] x", "float[batch, 1, 4] y", nodes)))

    assert (findings.found, findings.left) == ([], {})


def test_numbers_that_belong_to_no_token_are_passed_over() -> None:
    nodes = """
        u = MatMul(x, context) g = Gelu(u) q8, scale, zero8 = DynamicQuantizeLinear(g)
        y = DequantizeLinear(q8, scale, zero8)"""

    findings = find_aggregations(as_graph(parsed("float[batch, tokens, 4] x", "float[batch, tokens, 6] y", nodes)))

    assert (findings.found, findings.left) == ([], {})


def test_fixed_sizes() -> None:
    model = plain_graph(aggregate="y = MatMul(triangle, p)")
    lower = np.tri(5, dtype=np.float32)
    model.graph.initializer.append(numpy_helper.from_array(lower / lower.sum(-1, keepdims=True), "triangle"))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (2, 5, 4), strict=True):
        dim.dim_value = size
    del model.graph.output[0].type.tensor_type.shape.dim[:]

    check_is_mean(find_aggregations(as_graph(model)), "causal")


@pytest.mark.parametrize("sizes", ["batch, tokens", "2, 5"], ids=["dynamic", "fixed"])
def test_tokens_on_the_last_axis(sizes: str) -> None:
    nodes = f"""
        uc = MatMul(x, context) u = Transpose<perm = [0, 2, 1]>(uc) {ACTIVATIONS["leaky_relu"]}
        a = Mul(h, column) b = Mul(h, h) p = Add(a, b) y = ReduceMean<keepdims = 1>(p, at2)"""
    model = parsed(f"float[{sizes}, 4] x", "y", nodes)
    model.graph.initializer.append(numpy_helper.from_array(weights()["coefficients"][:, :1].copy(), "column"))

    (found,) = find_aggregations(as_graph(model)).found

    assert found.features.coefficients is not None
    assert (found.aggregate.mode, found.features.x.name) == ("mean", "u")
    np.testing.assert_array_equal(found.features.coefficients.array[:, 0], weights()["coefficients"][:, 0])
    np.testing.assert_array_equal(found.features.coefficients.array[:, 1], 1)


@pytest.mark.parametrize("sizes", [("tokens", "rows"), (5, 2)], ids=["dynamic", "fixed"])
@pytest.mark.parametrize(("mode", "nodes"), [("mean", "y = ReduceMean<keepdims = 1>(p, first)"), ("causal", """
    q = CumSum(p, zero_int) shape = Shape(p) n = Gather(shape, zero_int) k = Range(one, n1, one) d_ = Cast<to = 1>(k)
    d = Unsqueeze(d_, at12) y = Div(q, d)""".replace("k = ", "n1 = Add(n, one) k = "))])  # fmt: skip
def test_tokens_first(mode: str, nodes: str, sizes: tuple[str, str]) -> None:
    model = plain_graph(aggregate=nodes.replace("at12", "axes_"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "axes_"))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, sizes, strict=False):
        dim.Clear()
        setattr(dim, "dim_param" if isinstance(size, str) else "dim_value", size)
    del model.graph.output[0].type.tensor_type.shape.dim[:]

    check_is_mean(find_aggregations(as_graph(model)), mode)


def test_powers_that_are_averaged_one_by_one() -> None:
    nodes = """
        h2 = Mul(h, h) h3 = Mul(h2, h) m1 = ReduceMean<keepdims = 1>(h, at1) m2 = ReduceMean<keepdims = 1>(h2, at1)
        m3 = ReduceMean<keepdims = 1>(h3, at1) a = Mul(m1, c1) b = Mul(m2, c2) c = Mul(m3, c3) ab = Add(a, b)
        y = Add(ab, c)"""

    check_is_mean(find_aggregations(as_graph(plain_graph(polynomial="", aggregate=nodes))))


def test_products_that_are_averaged_one_by_one() -> None:
    nodes = """
        g = Gelu(u) a, b = Split<axis = -1, num_outputs = 2>(g) ab = Mul(a, b) d = ReduceMean<keepdims = 1>(a, at1)
        e = ReduceMean<keepdims = 1>(ab, at1) y = Concat<axis = -1>(d, e)"""

    findings = find_aggregations(as_graph(plain_graph("", "", nodes)))

    assert [(found.features.degree, found.aggregate.mode) for found in findings.found] == [(2, "mean")]
    assert not findings.left


@pytest.mark.parametrize("blocks", [1, 2])
def test_rotations(blocks: int) -> None:
    pairs = "abcd"[: 2 * blocks]
    rotated = "".join(
        f"{a}c = Mul({a}, cos{a}) {b}s = Mul({b}, sin{a}) {a}r = Sub({a}c, {b}s)"
        f" {b}c = Mul({b}, cos{a}) {a}s = Mul({a}, sin{a}) {b}r = Add({b}c, {a}s) "
        for a, b in zip(pairs[::2], pairs[1::2], strict=True)
    )
    tables = ", ".join(f"float[tokens, {6 // 2 // blocks}] {name}{a}" for a in pairs[::2] for name in ("cos", "sin"))
    splits = f"{', '.join(pairs)} = Split<axis = -1, num_outputs = {2 * blocks}>(p)"
    nodes = f"""
        u = MatMul(x, context) {ACTIVATIONS["leaky_relu"]} h2 = Mul(h, h) e2 = Mul(h2, c2) e1 = Mul(h, c1)
        p = Add(e1, e2) {splits} {rotated} r = Concat<axis = -1>({", ".join(f"{name}r" for name in pairs)})
        y = ReduceMean<keepdims = 1>(r, at1)"""
    if blocks == 2:
        nodes = nodes.replace("context", "context8").replace("c1)", "one_float)").replace("c2)", "two)")
        tables = tables.replace("[tokens, 1]", "[tokens, 2]")
    model = parsed(f"float[batch, tokens, 4] x, {tables}", f"float[batch, 1, {8 if blocks == 2 else 6}] y", nodes)
    if blocks == 2:
        model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 8), np.float32), "context8"))

    (found,) = find_aggregations(as_graph(model)).found

    assert found.features.rotation is not None
    assert [value.name for value in found.features.rotation.cos] == [f"cos{a}" for a in pairs[::2]]
    assert [value.name for value in found.features.rotation.sin] == [f"sin{a}" for a in pairs[::2]]


@pytest.mark.parametrize("twice", [True, False])
def test_a_rotation_by_tables_of_all_channels(twice: bool) -> None:
    doubled = "cc = Concat<axis = -1>(cos, cos) ss = Concat<axis = -1>(sin, {})".format("sin" if twice else "cos")
    nodes = f"""
        u = MatMul(x, context) {ACTIVATIONS["leaky_relu"]} h2 = Mul(h, h) e2 = Mul(h2, c2) e1 = Mul(h, c1)
        p = Add(e1, e2) {doubled} a, b = Split<axis = -1, num_outputs = 2>(p) n = Neg(b) t = Concat<axis = -1>(n, a)
        pc = Mul(p, cc) ts = Mul(t, ss) r = Add(pc, ts) y = ReduceMean<keepdims = 1>(r, at1)"""
    inputs = "float[batch, tokens, 4] x, float[tokens, 3] cos, float[tokens, 3] sin"

    findings = find_aggregations(as_graph(parsed(inputs, "float[batch, 1, 6] y", nodes)))

    assert [found.features.rotation is not None and found.features.rotation.twice for found in findings.found] == (
        [True] if twice else []
    )
    assert len(findings.left) == (0 if twice else 1)
