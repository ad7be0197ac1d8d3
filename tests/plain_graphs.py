"""Small graphs of mixers in standard operators, as exporters and people write them, in ONNX's own text format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from pom_export import contract

WIDTH, CHANNELS, DEGREE = 4, 6, 3

# h of u, (batch, tokens, CHANNELS).
ACTIVATIONS: Final = {
    "leaky_relu": "l = LeakyRelu<alpha = 0.01>(u) h = Clip(l, low, high)",
    "max": "t = Mul(u, slope) l = Max(u, t) h = Clip(l, low, high)",
    "where": "g = Greater(u, zero) t = Mul(slope, u) l = Where(g, u, t) h = Clip(l, low, high)",
    "min_max": "l = LeakyRelu<alpha = 0.01>(u) t = Max(l, low) h = Min(high, t)",
    "clamped_first": "t = Clip(u, minus_ten, high) h = LeakyRelu<alpha = 0.01>(t)",
    "relus": "r = Relu(u) n = Neg(u) o = Relu(n) t = Mul(o, slope) l = Sub(r, t) h = Clip(l, low, high)",
    "prelu": "l = PRelu(u, slope) h = Clip(l, low, high)",
}
# p of h.
POLYNOMIALS: Final = {
    "concatenated": """
        e = Unsqueeze(h, last) e2 = Mul(e, e) e3 = Mul(e2, e) a = Concat<axis = -1>(e, e2, e3) m = Mul(a, coefficients)
        p = ReduceSum<keepdims = 0>(m, last)""",
    "powers": """
        h2 = Pow(h, two) h3 = Pow(h, three) a = Mul(c1, h) b = Mul(h2, c2) c = Mul(c3, h3)
        ab = Add(a, b) p = Add(ab, c)""",
    "horner": "a = Mul(h, c3) b = Add(c2, a) c = Mul(b, h) d = Add(c, c1) p = Mul(h, d)",
    "vector_of_powers": """
        e = Unsqueeze(h, last) a = Pow(e, one_two_three) m = Mul(a, coefficients4)
        p = ReduceSum<keepdims = 0>(m, last)""",
    "einsum": """
        e = Unsqueeze(h, last) a = Pow(e, one_two_three)
        p = Einsum<equation = "bnck,ck->bnc">(a, coefficients)""",
    "transposed_coefficients": """
        e = Unsqueeze(h, first) a = Pow(e, powers_first) m = Mul(a, coefficients_kc)
        p = ReduceSum<keepdims = 0>(m, first)""",
}
_LOWER: Final = """
    shape = Shape(p) n = Slice(shape, at1, at2) nn = Concat<axis = 0>(n, n)
    ones = ConstantOfShape<value = ones_value>(nn) tril = Trilu<upper = 0>(ones)"""
# y of p, and a mask (batch, tokens), where there is one.
AGGREGATES: Final = {
    "mean": "y = ReduceMean<keepdims = 1>(p, at1)",
    "mean_unsqueezed": "q = ReduceMean<keepdims = 0>(p, at1) y = Unsqueeze(q, at1)",
    "sum_over_tokens": """
        q = ReduceSum<keepdims = 1>(p, at1) shape = Shape(p) n = Gather(shape, one) f = Cast<to = 1>(n)
        y = Div(q, f)""",
    "cumulative": """
        q = CumSum(p, one) shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one)
        f = Cast<to = 1>(range) k = Add(f, one_float) d = Unsqueeze(k, at1) y = Div(q, d)""",
    "triangle": f"{_LOWER} q = MatMul(tril, p) d = ReduceSum<keepdims = 1>(tril, last) y = Div(q, d)",
    "triangle_of_means": f"{_LOWER} d = ReduceSum<keepdims = 1>(tril, last) w = Div(tril, d) y = MatMul(w, p)",
    "triangle_einsum": f"""{_LOWER} d = ReduceSum<keepdims = 1>(tril, last) w = Div(tril, d)
        y = Einsum<equation = "bnc,tn->btc">(p, w)""",
    "broadcast": f"""{_LOWER} w3 = Unsqueeze(tril, first) w4 = Unsqueeze(w3, last) p4 = Unsqueeze(p, at1)
        v = Mul(w4, p4) q = ReduceSum<keepdims = 0>(v, at2) d = ReduceSum<keepdims = 1>(tril, last) y = Div(q, d)""",
    "compared": """
        shape = Shape(p) n = Gather(shape, one) range = Range(zero_int, n, one) i = Unsqueeze(range, at1)
        j = Unsqueeze(range, first) keep = GreaterOrEqual(i, j) w = Cast<to = 1>(keep) q = MatMul(w, p)
        d = ReduceSum<keepdims = 1>(w, last) y = Div(q, d)""",
}
CAUSAL: Final = ("broadcast", "cumulative", "triangle", "triangle_of_means", "triangle_einsum", "compared")
# With a mask: its type, and the nodes.
MASKED: Final = {
    "weights": ("float", """
        m_ = Unsqueeze(mask, last) w_ = Mul(p, m_) q_ = ReduceSum<keepdims = 1>(w_, at1)
        d_ = ReduceSum<keepdims = 1>(m_, at1) y = Div(q_, d_)"""),
    "bool": ("bool", """
        e_ = Unsqueeze(mask, last) m_ = Cast<to = 1>(e_) w_ = Mul(p, m_) q_ = ReduceSum<keepdims = 1>(w_, at1)
        d_ = ReduceSum<keepdims = 1>(m_, at1) y = Div(q_, d_)"""),
    "integers": ("int64", """
        e_ = Unsqueeze(mask, last) m_ = Cast<to = 1>(e_) w_ = Mul(p, m_) q_ = ReduceSum<keepdims = 1>(w_, at1)
        d_ = ReduceSum<keepdims = 1>(m_, at1) k_ = Clip(d_, one_float) y = Div(q_, k_)"""),
    "row": ("bool", """
        e_ = Unsqueeze(mask, at1) m_ = Cast<to = 1>(e_) q_ = MatMul(m_, p) d_ = ReduceSum<keepdims = 1>(m_, last)
        y = Div(q_, d_)"""),
    "normalised": ("bool", """
        m_ = Cast<to = 1>(mask) d_ = ReduceSum<keepdims = 1>(m_, at1) w_ = Div(m_, d_) e_ = Unsqueeze(w_, last)
        v_ = Mul(p, e_) y = ReduceSum<keepdims = 1>(v_, at1)"""),
    "chosen": ("bool", """
        e_ = Unsqueeze(mask, last) v_ = Where(e_, p, zero) q_ = ReduceSum<keepdims = 1>(v_, at1) m_ = Cast<to = 1>(e_)
        d_ = ReduceSum<keepdims = 1>(m_, at1) y = Div(q_, d_)"""),
    "inverted": ("bool", """
        k_ = Not(mask) e_ = Unsqueeze(k_, last) m_ = Cast<to = 1>(e_) w_ = Mul(p, m_)
        q_ = ReduceSum<keepdims = 1>(w_, at1) d_ = ReduceSum<keepdims = 1>(m_, at1) y = Div(q_, d_)"""),
    "epsilon": ("float", """
        m_ = Unsqueeze(mask, last) w_ = Mul(p, m_) q_ = ReduceSum<keepdims = 1>(w_, at1)
        s_ = ReduceSum<keepdims = 1>(m_, at1) d_ = Add(s_, small) y = Div(q_, d_)"""),
}  # fmt: skip


def weights() -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights of the graphs: `context`, `gate`, `out`, and `coefficients` (CHANNELS, DEGREE)."""
    generator = np.random.default_rng(3)
    shapes = {
        "context": (WIDTH, CHANNELS),
        "gate": (WIDTH, CHANNELS),
        "out": (CHANNELS, WIDTH),
        "coefficients": (CHANNELS, DEGREE),
    }
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _constants() -> dict[str, npt.NDArray[np.generic]]:
    coefficients = weights()["coefficients"]
    floats = {
        "low": -0.1, "high": 6.0, "five": 5.0, "slope": 0.01, "zero": 0.0, "one_float": 1.0, "two": 2.0, "three": 3.0,
        "minus_ten": -10.0, "small": 1e-6,
    }  # fmt: skip
    integers = {"at1": [1], "at2": [2], "first": [0], "last": [-1], "one": 1, "zero_int": 0, "window": 512, "six": 6}
    return {
        **{name: np.array(number, np.float32) for name, number in floats.items()},
        **{name: np.array(number, np.int64) for name, number in integers.items()},
        **weights(),
        **{f"c{j + 1}": coefficients[:, j].copy() for j in range(DEGREE)},
        "coefficients4": coefficients[None, None],
        "gate_of_heads": weights()["gate"][:, :2].copy(),
        "coefficients_kc": coefficients.T.copy()[:, None, None],
        "one_two_three": np.array([1, 2, 3], np.float32),
        "powers_first": np.array([1, 2, 3], np.float32).reshape(3, 1, 1, 1),
    }


def plain_graph(
    activation: str = ACTIVATIONS["leaky_relu"],
    polynomial: str = POLYNOMIALS["concatenated"],
    aggregate: str = AGGREGATES["mean"],
    mask: str = "",
    opset: int = 20,
    gate: str = "s = MatMul(x, gate) g_ = HardSigmoid<alpha = 0.16666667>(s)",
) -> onnx.ModelProto:
    """Return a mixer of standard operators: x (batch, tokens, WIDTH) to out of the same shape.

    Args:
        activation: the nodes that compute h of u.
        polynomial: those that compute p of h.
        aggregate: those that compute y of p, and of the mask.
        mask: the type of the input `mask`, (batch, tokens); empty: there is none.
        opset: version of the standard operators.
        gate: the nodes that compute g_ of x.
    """
    masked = f", {mask}[batch, tokens] mask" if mask else ""
    nodes = f"""
        u = MatMul(x, context) {activation} {polynomial} {aggregate}
        {gate} z = Mul(g_, y) result = MatMul(z, out)"""
    return parsed(f"float[batch, tokens, {WIDTH}] x{masked}", f"float[batch, tokens, {WIDTH}] result", nodes, opset)


def parsed(inputs: str, outputs: str, nodes: str, opset: int = 20) -> onnx.ModelProto:
    """Return a model from the text of its inputs, outputs and nodes, with the constants that these name."""
    nodes = nodes.replace("ones_value", "float[1] {1}")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> plain ({inputs}) => ({outputs}) {{ {nodes} }}'
    )
    used = {name for node in model.graph.node for name in node.input}
    for name, array in _constants().items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(array, name))
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{index}"
    return model


def as_graph(model: onnx.ModelProto) -> ir.Graph:
    """Return a model's graph with the shapes that onnx infers."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True)).graph


def run(model: onnx.ModelProto, feed: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
    """Return a plain model's result in onnx's reference implementation."""
    from onnx.reference import ReferenceEvaluator

    (result,) = ReferenceEvaluator(model).run(None, dict(feed))
    return np.asarray(result, np.float32)


def ours(path: Path) -> list[onnx.NodeProto]:
    """Return the nodes of our ops in a file."""
    return [node for node in onnx.load(path).graph.node if node.domain == contract.DOMAIN]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Return an attribute of a node."""
    value = next(onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return value.decode() if isinstance(value, bytes) else value
