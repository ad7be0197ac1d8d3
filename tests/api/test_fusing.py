"""A fused file computes what the original does, with its weights, and is written only if it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import pom_export
from pom_export import contract
from pom_export.errors import InputError, ParityError
from pom_export.graph.fusing import rewriting
from tests.plain_graphs import ACTIVATIONS, AGGREGATES, MASKED, WIDTH, attribute, ours, parsed, plain_graph, run

_PATHS = ["onnxruntime kernel", "onnxruntime function"]


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "plain.onnx"
    onnx.save(model, path)
    return path


def test_a_fused_file(tmp_path: Path) -> None:
    model = plain_graph(aggregate=AGGREGATES["triangle"])
    model.producer_name = "anybody"
    onnx.helper.set_model_props(model, {"theirs": "kept"})
    plain, output = saved(model, tmp_path), tmp_path / "out.onnx"

    result = pom_export.fuse(plain, output)

    assert result
    assert (result.fused, result.kept, result.left, result.notes) == (1, 0, [], [])
    assert (result.model, result.checked, len(result.cases)) == (str(output), _PATHS, 9)
    fused = onnx.load(output)
    assert (fused.producer_name, [(each.key, each.value) for each in fused.metadata_props]) == (
        "anybody",
        [("theirs", "kept")],
    )
    assert (fused.graph.input, fused.graph.output) == (model.graph.input, model.graph.output)
    (node,) = ours(output)
    assert (node.op_type, attribute(node, "mode"), attribute(node, "gate_activation")) == (
        contract.GATED_OP_NAME,
        "causal",
        "hardsigmoid",
    )
    before = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    after = {each.name: numpy_helper.to_array(each) for each in fused.graph.initializer}
    for name in ("context", "gate", "out", "coefficients"):
        assert after[name].tobytes() == before[name].tobytes()
    x = np.random.default_rng(0).standard_normal((2, 19, WIDTH)).astype(np.float32)
    (made,) = pom_export.inference_session(output).run(None, {"x": x})
    np.testing.assert_allclose(made, run(model, {"x": x}), rtol=1e-5, atol=1e-5)


def test_a_mask_that_keeps_nothing_gives_0_and_a_note(tmp_path: Path) -> None:
    dtype, nodes = MASKED["bool"]
    plain, output = saved(plain_graph(aggregate=nodes, mask=dtype), tmp_path), tmp_path / "out.onnx"

    result = pom_export.fuse(plain, output)

    assert result.notes == ["a row whose mask keeps no token gives 0; in the file given it is NaN, 0 divided by 0"]
    assert "a fully masked row" in result.cases
    x, mask = np.ones((2, 3, WIDTH), np.float32), np.array([[True, False, True], [False] * 3])
    (made,) = pom_export.inference_session(output).run(None, {"x": x, "mask": mask})
    assert made[0].any()
    assert not made[1].any()


@pytest.mark.parametrize("kind", MASKED)
def test_masks(kind: str, tmp_path: Path) -> None:
    dtype, nodes = MASKED[kind]

    result = pom_export.fuse(saved(plain_graph(aggregate=nodes, mask=dtype), tmp_path), tmp_path / "out.onnx")

    assert (result.fused, result.checked) == (1, _PATHS)
    (node,) = ours(tmp_path / "out.onnx")
    assert attribute(node, "epsilon") == pytest.approx(1e-6 if kind == "epsilon" else 0)


@pytest.mark.parametrize("opset", [17, 18, 21, 23])
def test_opsets(opset: int, tmp_path: Path) -> None:
    nodes = "q = ReduceSum<keepdims = 1>(p, at1) n = Size(p) y = Div(q, five)"  # at any opset
    model = plain_graph(aggregate=AGGREGATES["sum_over_tokens"], opset=opset)

    assert pom_export.fuse(saved(model, tmp_path), tmp_path / "out.onnx").opset == opset
    assert not pom_export.fuse(saved(plain_graph(aggregate=nodes, opset=opset), tmp_path), tmp_path / "no.onnx")


def test_without_optimising_only_the_aggregation_changes(tmp_path: Path) -> None:
    plain = saved(plain_graph(), tmp_path)

    pom_export.fuse(plain, tmp_path / "out.onnx", optimize=False)

    kinds = [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node]
    assert kinds == ["MatMul", contract.OP_NAME, "MatMul", "HardSigmoid", "Mul", "MatMul"]


def test_nothing_to_fuse(tmp_path: Path) -> None:
    nodes = ACTIVATIONS["leaky_relu"].replace("high", "five")
    output = tmp_path / "out.onnx"
    output.write_text("before")

    almost = pom_export.fuse(saved(plain_graph(nodes), tmp_path), output)
    nowhere = pom_export.fuse(saved(parsed("float[a, b] x", "float[a, b] y", "y = Add(x, five)"), tmp_path), output)

    assert not almost
    assert not nowhere
    assert almost.left == [{"node": "Clip_2", "reason": "its activation clamps at 5, not at 6"}]
    assert nowhere.left == []
    assert nowhere.notes[0].startswith("nothing was fused: it has no polynomial")
    assert (almost.model, almost.sha256, almost.checked) == (None, None, [])
    assert output.read_text() == "before"


def test_a_file_that_has_the_op_already(tmp_path: Path) -> None:
    plain, once, twice = saved(plain_graph(), tmp_path), tmp_path / "once.onnx", tmp_path / "twice.onnx"
    pom_export.fuse(plain, once)
    model, other = onnx.load(once), plain_graph(aggregate=AGGREGATES["cumulative"])
    both = onnx.compose.merge_models(
        onnx.compose.add_prefix(model, "a_", rename_functions=False),
        onnx.compose.add_prefix(other, "b_"),
        io_map=[("a_result", "b_x")],
    )
    onnx.save(both, tmp_path / "both.onnx")

    again = pom_export.fuse(tmp_path / "both.onnx", twice)

    assert (again.fused, again.kept) == (1, 1)
    assert [attribute(node, "mode") for node in ours(twice)] == ["mean", "causal"]
    none = pom_export.fuse(once, tmp_path / "no.onnx")
    assert (none.fused, none.kept, none.notes) == (
        0,
        1,
        ["nothing was fused: its 1 aggregation is a node of the op already"],
    )


def test_a_difference_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = rewriting.put_aggregation

    def wrong(graph: Any, found: Any) -> Any:
        node = put(graph, found)
        node.attributes["mode"] = rewriting.ir.AttrString("mode", "causal")
        return node

    monkeypatch.setattr("pom_export.graph.fusing.model.put_aggregation", wrong)
    plain = saved(plain_graph(aggregate=AGGREGATES["mean"]), tmp_path)

    with pytest.raises((ParityError, InputError), match=r"differs from|invalid"):
        pom_export.fuse(plain, tmp_path / "out.onnx", optimize=False)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


def never_trained(name: str) -> onnx.ModelProto:
    """Return a mixer of which one weight is 0 everywhere."""
    model = plain_graph(aggregate=AGGREGATES["triangle"])
    weight = next(each for each in model.graph.initializer if each.name == name)
    weight.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(weight)), name))
    return model


def test_a_last_product_of_zeros_hides_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = rewriting.put_aggregation

    def wrong(graph: Any, found: Any) -> Any:
        node = put(graph, found)
        node.inputs[1].const_value = rewriting.ir.tensor(node.inputs[1].const_value.numpy() * 1.001)
        return node

    plain = saved(never_trained("out"), tmp_path)

    assert pom_export.fuse(plain, tmp_path / "right.onnx").notes == []
    monkeypatch.setattr("pom_export.graph.fusing.model.put_aggregation", wrong)
    with pytest.raises(ParityError, match=r"z of onnxruntime \(kernel\) differs from"):
        pom_export.fuse(plain, tmp_path / "wrong.onnx")
    assert not (tmp_path / "wrong.onnx").exists()


def test_nothing_but_zeros_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gives 0 on all inputs that were tried, which proves nothing"):
        pom_export.fuse(saved(never_trained("context"), tmp_path), tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_quantized_file_is_called_one(tmp_path: Path) -> None:
    rounded = "q8 = QuantizeLinear(u, one_float, zero_point) v = DequantizeLinear(q8, one_float, zero_point)"
    model = plain_graph(f"{rounded} l = LeakyRelu<alpha = 0.01>(v) t = Clip(l, low, high) h = Round(t)")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), "zero_point"))

    result = pom_export.fuse(saved(model, tmp_path), tmp_path / "out.onnx")

    assert not result
    assert result.notes[-1].startswith("it is quantized")


def test_weights_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(
        plain_graph(), tmp_path / "in" / "m.onnx", save_as_external_data=True, location="m.weights", size_threshold=64
    )

    result = pom_export.fuse(tmp_path / "in" / "m.onnx", tmp_path / "out.onnx")

    assert result.fused == 1
    assert not (tmp_path / "out.onnx.data").exists()


def test_refusals(tmp_path: Path) -> None:
    plain = saved(plain_graph(opset=20), tmp_path)

    with pytest.raises(InputError, match="is the input itself"):
        pom_export.fuse(plain, plain)
    old = plain_graph(aggregate=AGGREGATES["sum_over_tokens"], opset=15)
    with pytest.raises(InputError, match="uses opset 15, and files of opset 17 to 24 can be fused"):
        pom_export.fuse(saved(old, tmp_path), tmp_path / "out.onnx")


def test_after_onnx_runtimes_optimizer(tmp_path: Path) -> None:
    import onnxruntime

    nodes = """
        v = Add(u, c1) t = Div(v, r_) f = Erf(t) k = Add(f, one_float) w = Mul(v, k) g = Mul(w, h_)
        a, b = Split<axis = -1, num_outputs = 2>(g) ab = Mul(a, b) p = Concat<axis = -1>(a, ab)"""
    constants = "r_ = Constant<value_float = 1.41421356>() h_ = Constant<value_float = 0.5>()"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(saved(plain_graph(constants, nodes), tmp_path), options)
    assert "BiasGelu" in {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}

    result = pom_export.fuse(tmp_path / "optimized.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left) == (1, [])
    assert (attribute(ours(tmp_path / "out.onnx")[0], "form"), result.checked) == ("product", _PATHS)


def test_a_convolution_that_onnx_runtimes_optimizer_joined_with_its_activation(tmp_path: Path) -> None:
    import onnxruntime

    nodes = """
        t = Transpose<perm = [0, 2, 1]>(x) c = Conv<kernel_shape = [1]>(t, kernel) l = LeakyRelu<alpha = 0.01>(c)
        h = Clip(l, low, high) h2 = Mul(h, h) p = Add(h, h2) m = ReduceMean<keepdims = 1>(p, at2)
        o = Conv<kernel_shape = [1]>(t, other) r = Relu(o) z = Mul(m, r) y = Transpose<perm = [0, 2, 1]>(z)"""
    model = parsed("float[batch, tokens, 4] x", "float[batch, tokens, 6] y", nodes)
    for name, number in (("kernel", 1), ("other", 2)):
        model.graph.initializer.append(numpy_helper.from_array(np.full((6, 4, 1), number, np.float32), name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(saved(model, tmp_path), options)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node].count("FusedConv") == 2

    result = pom_export.fuse(tmp_path / "optimized.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left) == (1, [])
    # The other convolution is as it was.
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node].count("FusedConv") == 1


def test_a_shape_that_is_asked_for_before_the_tokens_are_projected(tmp_path: Path) -> None:
    nodes = """
        shape = Shape(v) r = Relu(v) u = Mul(r, two) l = LeakyRelu<alpha = 0.01>(u) h = Clip(l, low, high)"""
    aggregate = """
        q = CumSum(p, one) n = Gather(shape, one) range = Range(zero_int, n, one) f = Cast<to = 1>(range)
        k = Add(f, one_float) d = Unsqueeze(k, at1) y = Div(q, d)"""
    model = plain_graph(nodes, aggregate=aggregate)
    model.graph.node[0].output[0] = "v"

    result = pom_export.fuse(saved(model, tmp_path), tmp_path / "out.onnx")

    assert (result.fused, attribute(ours(tmp_path / "out.onnx")[0], "mode")) == (1, "causal")


def test_a_mask_of_padding_is_compared_where_tokens_are_left(tmp_path: Path) -> None:
    dtype, nodes = MASKED["inverted"]

    result = pom_export.fuse(saved(plain_graph(aggregate=nodes, mask=dtype), tmp_path), tmp_path / "out.onnx")

    assert not any("not compared" in note for note in result.notes)
    assert {"one token", "nothing masked", "a fully masked row"} <= set(result.cases)


def test_names_that_onnx_runtimes_optimizer_would_take_again(tmp_path: Path) -> None:
    import onnxruntime

    model = plain_graph()
    model.graph.node[-1].output[0] = "projected"
    model.graph.node.append(onnx.helper.make_node("Add", ["projected", "bias"], ["result"]))
    model.graph.initializer.append(numpy_helper.from_array(np.ones(WIDTH, np.float32), "bias"))
    for value in (*model.graph.input, *model.graph.output):
        for dim, size in zip(value.type.tensor_type.shape.dim, (2, 5, WIDTH), strict=True):
            dim.dim_value = size
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(saved(model, tmp_path), options)

    assert pom_export.fuse(tmp_path / "optimized.onnx", tmp_path / "out.onnx").checked == _PATHS


_HEADS = """
    s = MatMul(x, gate_of_heads) a_ = Sigmoid(s) b_ = Unsqueeze(a_, last) three_ = Constant<value_ints = [1, 1, 1, 3]>()
    c_ = Tile(b_, three_) size_ = Constant<value_ints = [0, 0, 6]>() g_ = Reshape(c_, size_)"""


@pytest.mark.parametrize(
    ("gate", "aggregate", "activation"),
    [
        ("s = MatMul(x, gate) t_ = Add(s, three) g_ = Clip(t_, zero, high)", "triangle", "identity"),
        ("s = MatMul(x, gate) t_ = Add(s, three) k_ = Clip(t_, zero, high) g_ = Div(k_, high)", "mean", "hardsigmoid"),
        (_HEADS, "triangle", "sigmoid"),
    ],
    ids=["another", "clamped", "repeated for heads"],
)
def test_gates_are_fused(gate: str, aggregate: str, activation: str, tmp_path: Path) -> None:
    plain = saved(plain_graph(aggregate=AGGREGATES[aggregate], gate=gate), tmp_path)

    pom_export.fuse(plain, tmp_path / "out.onnx")

    (node,) = ours(tmp_path / "out.onnx")
    assert (node.op_type, attribute(node, "gate_activation")) == (contract.GATED_OP_NAME, activation)
