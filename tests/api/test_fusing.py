"""A fused file computes what the original does, with its weights, and is written only if it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import pom_export
from pom_export import contract
from pom_export.errors import InputError, ParityError
from pom_export.graph.fusing import rewriting
from tests.official_style import PoM, ProductPoM, RotaryPoM, SeparatePoM
from tests.plain_graphs import ACTIVATIONS, AGGREGATES, MASKED, WIDTH, parsed, plain_graph, run

_PATHS = ["onnxruntime kernel", "onnxruntime function"]


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "plain.onnx"
    onnx.save(model, path)
    return path


def ours(path: Path) -> list[onnx.NodeProto]:
    """Return the nodes of our ops in a file."""
    return [node for node in onnx.load(path).graph.node if node.domain == contract.DOMAIN]


def attribute(node: onnx.NodeProto, name: str) -> Any:
    value = next(onnx.helper.get_attribute_value(each) for each in node.attribute if each.name == name)
    return value.decode() if isinstance(value, bytes) else value


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

    monkeypatch.setattr("pom_export.graph.fusing.files.put_aggregation", wrong)
    plain = saved(plain_graph(aggregate=AGGREGATES["mean"]), tmp_path)

    with pytest.raises((ParityError, InputError), match=r"differs from|invalid"):
        pom_export.fuse(plain, tmp_path / "out.onnx", optimize=False)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.onnx"]


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


class TokensLast(nn.Module):
    """A mixer that never leaves the layout of its convolutions, (B, C, N)."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gate, self.last = (nn.Conv1d(a, b, 1) for a, b in ((8, 12), (8, 12), (12, 8)))
        self.coefficients = nn.Parameter(torch.randn(2, 12, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.leaky_relu(self.context(x.transpose(1, 2)), 0.01).clamp(-0.1, 6.0)
        p = self.coefficients[0] * h + self.coefficients[1] * h * h
        y: Tensor = self.last(torch.sigmoid(self.gate(x.transpose(1, 2))) * p.mean(2, keepdim=True))
        return y.transpose(1, 2)


class HeadsFirst(nn.Module):
    """A causal mixer whose channels are heads before the tokens, (B, H, N, C / H)."""

    def __init__(self) -> None:
        super().__init__()
        self.context, self.gate, self.last = nn.Linear(8, 12), nn.Linear(8, 3), nn.Linear(12, 8)
        self.coefficients = nn.Parameter(torch.randn(2, 3, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        u = self.context(x).unflatten(-1, (3, 4)).transpose(1, 2)
        h = nn.functional.leaky_relu(u, 0.01).clamp(-0.1, 6.0)
        p = self.coefficients[0] * h + self.coefficients[1] * h * h
        a = torch.tril(torch.ones(tokens, tokens)) @ p / torch.arange(1, tokens + 1)[:, None]
        gated = torch.sigmoid(self.gate(x)).transpose(1, 2).unsqueeze(-1) * a
        y: Tensor = self.last(gated.transpose(1, 2).flatten(2))
        return y


@pytest.mark.parametrize(("module", "mode"), [(TokensLast, "mean"), (HeadsFirst, "causal")])
def test_other_layouts(module: Callable[[], nn.Module], mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_torchscript(module().eval(), {"x": torch.randn(2, 5, 8)}, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left, result.checked) == (1, [], _PATHS)
    assert [attribute(node, "mode") for node in ours(tmp_path / "out.onnx")] == [mode]


class Masked(nn.Module):
    """A mixer with a fixed kind of mask, or with one that is given."""

    def __init__(self, mixer: nn.Module, mask: str | None) -> None:
        super().__init__()
        self.mixer, self.mask = mixer, mask

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.mixer(x, mask=self.mask if mask is None else mask)
        return found


def by_dynamo(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    sizes = [torch.export.Dim("batch"), torch.export.Dim("tokens"), torch.export.Dim("tokens")]
    torch.onnx.export(
        module,
        kwargs=dict(inputs),
        f=path,
        dynamo=True,
        verbose=False,
        dynamic_shapes={
            name: {axis: sizes[axis] for axis in range(x.dim() - (name == "x"))} for name, x in inputs.items()
        },
    )


def by_torchscript(module: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    axes = {
        name: dict(enumerate(["batch", "tokens", "tokens"][: x.dim() - (name == "x")])) for name, x in inputs.items()
    }
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        path,
        dynamo=False,
        opset_version=17,
        input_names=list(inputs),
        output_names=["y"],
        dynamic_axes={**axes, "y": {0: "batch", 1: "tokens"}},
    )


_EXPORTERS: Mapping[str, Callable[..., None]] = {"dynamo": by_dynamo, "torchscript": by_torchscript}
_MIXERS: Mapping[str, Callable[[], nn.Module]] = {
    "v2": lambda: PoM(8, 3, 2, 1, 1),
    "heads": lambda: PoM(8, 2, 2, 1, 4),
    "groups": lambda: PoM(8, 3, 2, 2, 1, bias=True),
    "separate": lambda: SeparatePoM(8, 4, 1, 1, 1),
    "v1": lambda: ProductPoM(8, 3, 1),
    "grouped v1": lambda: ProductPoM(8, 2, 1, 2),
    "rotary": lambda: RotaryPoM(8, 2, 2, 1200),
}
_MASKS: Mapping[str, tuple[str | None, Tensor | None]] = {
    "none": (None, None),
    "causal": ("causal", None),
    "padding": (None, torch.ones(2, 5, dtype=torch.bool)),
    "weights": (None, torch.ones(2, 5)),
    "full": (None, torch.ones(2, 5, 5, dtype=torch.bool)),
}
_MODES = {"none": "mean", "causal": "causal", "padding": "mean", "weights": "mean", "full": "features"}
_FEW = {("v2", "causal", "torchscript"), ("heads", "padding", "torchscript"), ("grouped v1", "none", "torchscript"),
        ("v2", "none", "dynamo"), ("rotary", "causal", "torchscript"), ("v1", "full", "torchscript")}  # fmt: skip


@pytest.mark.parametrize(
    ("mixer", "mask", "exporter"),
    [
        pytest.param(*case, marks=[] if case in _FEW else [pytest.mark.slow])
        for case in [(mixer, mask, exporter) for mixer in _MIXERS for mask in _MASKS for exporter in _EXPORTERS]
    ],
)
def test_what_torch_exports(mixer: str, mask: str, exporter: str, tmp_path: Path) -> None:
    kind, given = _MASKS[mask]
    torch.manual_seed(0)
    module = Masked(_MIXERS[mixer](), kind).eval()
    inputs = {"x": torch.randn(2, 5, 8), **({} if given is None else {"mask": given})}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _EXPORTERS[exporter](module, inputs, tmp_path / "plain.onnx")

    result = pom_export.fuse(tmp_path / "plain.onnx", tmp_path / "out.onnx")

    assert (result.fused, result.left, result.checked) == (1, [], _PATHS)
    (node,) = ours(tmp_path / "out.onnx")
    assert attribute(node, "mode") == _MODES[mask]
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (made,) = pom_export.inference_session(tmp_path / "out.onnx").run(None, feed)
    np.testing.assert_allclose(made, module(**inputs).detach().numpy(), rtol=1e-4, atol=1e-5)
