"""What an optimised graph holds, and that it computes what the plain one does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import pom_export
from pom_export import contract
from pom_export.graph.options import GraphOptions
from pom_export.graph.program import Program
from pom_export.graph.programs import program_of
from pom_export.graph.saving import save_model
from pom_export.graph.tracing import export_graph
from pom_export.mixer import PolynomialMixer, ProductMixer, RotaryPolynomialMixer
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.session import inference_session
from tests.slow_cases import slow_cases

GATED = contract.GATED_OP_NAME
PLAIN = contract.OP_NAME
FACTOR = ["Reshape", "Transpose", "MatMul", "Transpose", "MatMul"]
FACTORED = ["MatMul", "MatMul", "Add", "HardSigmoid", PLAIN, *FACTOR]


def program(mixer: nn.Module, **options: object) -> Program:
    torch.manual_seed(0)
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return program_of(mixer.eval(), GraphOptions(**options))


def exported(traced: Program, path: Path, optimize: bool = True) -> ir.Model:
    save_model(export_graph(traced, 20, {"dtype": "float32"}, optimize=optimize), path)
    return ir.load(path)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


CASES = {
    "mean": (lambda: PolynomialMixer(8, 3, 2), {}, ["MatMul", "MatMul", GATED, "MatMul"]),
    "causal": (lambda: PolynomialMixer(8, 3, 2), {"mask": "causal"}, ["MatMul", "MatMul", GATED, "MatMul"]),
    "padding": (lambda: PolynomialMixer(8, 3, 2), {"mask": "padding"}, ["MatMul", "MatMul", GATED, "MatMul"]),
    "cross": (
        lambda: PolynomialMixer(8, 3, 2),
        {"mask": "padding", "cross": True},
        ["Split", "Transpose", "MatMul", "Transpose", "MatMul", GATED, "MatMul"],
    ),
    "heads": (lambda: PolynomialMixer(8, 3, 2, n_sel_heads=4), {}, FACTORED),
    "heads, padding, bias": (
        lambda: PolynomialMixer(8, 3, 2, n_sel_heads=4, bias=True),
        {"mask": "padding"},
        [*FACTORED, "Add"],
    ),
    "heads, causal": (
        lambda: PolynomialMixer(8, 3, 2, n_sel_heads=4),
        {"mask": "causal"},
        ["MatMul", "MatMul", GATED, "MatMul"],
    ),
    "groups": (
        lambda: PolynomialMixer(8, 3, 2, n_groups=2, bias=True),
        {},
        ["Transpose", "Conv", "Transpose", "MatMul", GATED, "MatMul", "Add"],
    ),
    "v1": (lambda: ProductMixer(8, 2, 2), {"mask": "causal"}, ["MatMul", "Add", "MatMul", GATED, "MatMul", "Add"]),
    "v1 grouped": (
        lambda: ProductMixer(8, 2, 2, n_head=2, bias=False),
        {"mask": "causal"},
        ["Transpose", "Conv", "Transpose", "MatMul", GATED, "MatMul"],
    ),
    "v1 grouped, mean": (
        lambda: ProductMixer(8, 2, 2, n_head=2, bias=False),
        {"mask": "padding"},
        ["Transpose", "Conv", "Transpose", "MatMul", "Sigmoid", PLAIN, *FACTOR],
    ),
}


SLOW = {"causal", "padding", "cross", "heads, padding, bias", "groups", "v1", "rotary heads"}

ROTARY: dict[str, tuple[Callable[[], nn.Module], dict[str, object], list[str]]] = {
    "rotary": (lambda: RotaryPolynomialMixer(8, 3, 2), {"mask": "causal"}, []),
    "rotary heads": (lambda: RotaryPolynomialMixer(8, 3, 2, n_sel_heads=4), {"mask": "causal"}, []),
}


@pytest.fixture(scope="module")
def traced_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Program, Path]]:
    """Return a case's program and its file, exported only once."""

    @functools.cache
    def make_case(case: str) -> tuple[Program, Path]:
        make, options, _ = {**CASES, **ROTARY}[case]
        traced, path = program(make(), **options), tmp_path_factory.mktemp("case") / "m.onnx"
        exported(traced, path)
        return traced, path

    return make_case


@pytest.mark.parametrize("case", slow_cases(CASES, SLOW.__contains__))
def test_the_graph_is_what_was_meant(case: str, traced_case: Callable[[str], tuple[Program, Path]]) -> None:
    assert op_types(ir.load(traced_case(case)[1])) == CASES[case][2]


@pytest.mark.parametrize("kernels", [False, True], ids=["functions", "kernels"])
@pytest.mark.parametrize("case", slow_cases([*CASES, *ROTARY], SLOW.__contains__))
def test_the_outputs_are_those_of_pytorch(
    case: str, kernels: bool, traced_case: Callable[[str], tuple[Program, Path]]
) -> None:
    traced, path = traced_case(case)
    generator = torch.Generator().manual_seed(1)
    sizes = {2: 3, 7: 11, 5: 6}  # others than those that were traced
    inputs = {}
    for name, example in traced.inputs.items():
        shape = [sizes.get(size, size) for size in example.shape]
        values = torch.randn(shape, generator=generator)
        inputs[name] = values > 0 if example.dtype == torch.bool else values
    with torch.no_grad():
        wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
        expected = traced.module.double()(**wide).numpy()

    session = inference_session(path, kernels=kernels)
    (y,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})

    found = difference(y, expected, MODELS["float32"])
    assert found, found


@pytest.mark.parametrize("case", slow_cases(ROTARY, SLOW.__contains__))
def test_rotated_gates_are_applied_as_they_are(case: str, traced_case: Callable[[str], tuple[Program, Path]]) -> None:
    model = ir.load(traced_case(case)[1])
    (node,) = [node for node in model.graph if node.op_type == GATED]
    assert node.attributes["gate_activation"].as_string() == "identity"
    bias = node.inputs[2]
    assert bias is not None
    assert not bias.const_value.numpy().any()


def test_without_optimisation_the_graph_stays_as_it_was_traced(tmp_path: Path) -> None:
    model = exported(program(PolynomialMixer(8, 3, 2)), tmp_path / "m.onnx", optimize=False)
    assert op_types(model) == ["MatMul", "Split", "Add", "HardSigmoid", PLAIN, "Mul", "MatMul"]


def test_every_attribute_is_written_in_the_contracts_order(tmp_path: Path) -> None:
    exported(program(ProductMixer(8, 2, 2), mask="padding"), tmp_path / "m.onnx")
    (node,) = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == GATED]
    assert [attribute.name for attribute in node.attribute] == list(contract.GATED_ATTRIBUTES)
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (values["form"], values["degree"], values["gate_activation"]) == (b"product", 2, b"sigmoid")
    assert values["epsilon"] == pytest.approx(1e-7)
    assert len(node.input) == 5  # up to the mask


def test_the_weights_are_cut_and_not_kept_twice(tmp_path: Path) -> None:
    mixer = PolynomialMixer(16, 3, 2, n_sel_heads=4)
    exported(program(mixer), tmp_path / "m.onnx")
    stored = sum(np.prod(tensor.dims) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer)
    assert stored <= sum(parameter.numel() for parameter in mixer.parameters()) + 16  # the sizes of two Reshapes


class Surroundings(nn.Module):
    """A mixer's parts in surroundings that the rewrites must take into account."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.mixer = PolynomialMixer(8, 3, 2, n_sel_heads=4 if "heads" in kind else 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mixer, kind = self.mixer, self.kind
        both = mixer.qc_proj(x)
        projected, gate = both.split([16, mixer.config.gate_width], dim=-1)
        mode = "features" if kind == "a gate over features" else "mean"
        a = torch.ops.pom.polynomial_aggregation(projected, mixer.po_coeff, None, mode)
        s = functional.hardsigmoid(gate + mixer.se_bias)
        if kind == "the gate is tanh":
            return (mixer.ag_proj(torch.tanh(gate) * a),)
        if kind == "the gate is an output":
            return mixer.ag_proj(s * a), s
        if kind == "the aggregate is an output":
            return mixer.ag_proj(s * a), a
        if kind == "the projection is an output":
            return mixer.ag_proj(s * a), both
        if kind == "the context's part is an output":
            return mixer.ag_proj(s * a), projected
        if kind == "weights are used transposed too":
            return (mixer.ag_proj(s * a) @ mixer.ag_proj.weight @ torch.ones(16, 3) + both.sum() * 0,)
        if kind == "one gate for the sequence":
            return (mixer.ag_proj(s.mean(1, keepdim=True) * a),)
        if kind == "a gate over features":
            return (mixer.ag_proj(s * a),)
        folded = (a.unflatten(-1, (4, -1)) * s.unsqueeze(-1)).flatten(-2)
        if kind == "heads, an output":
            return mixer.ag_proj(folded), folded
        if kind == "heads, interleaved":  # gate j serves channels j, j + 4, ...
            return (mixer.ag_proj((a.unflatten(-1, (-1, 4)) * s.unsqueeze(-2)).flatten(-2)),)
        assert kind == "heads, two products"
        return mixer.ag_proj(folded), folded @ torch.ones(16, 3)


# Of each kind: whether the projection's weights are split, and whether the gate is part of the aggregation.
REWRITTEN = {
    "the gate is tanh": (True, True),
    "the gate is an output": (True, True),
    "the aggregate is an output": (True, False),
    "the projection is an output": (False, True),
    "the context's part is an output": (True, True),
    "weights are used transposed too": (False, True),
    "one gate for the sequence": (True, True),
    "a gate over features": (True, False),
    "heads, an output": (True, True),
    "heads, interleaved": (True, False),
    "heads, two products": (True, True),
}


FEW = ["the gate is an output", "the aggregate is an output", "the projection is an output", "heads, two products"]


@pytest.mark.parametrize("kinds", [FEW, pytest.param(list(REWRITTEN), marks=pytest.mark.slow)], ids=["few", "all"])
def test_whatever_stands_around_it_the_outputs_stay(kinds: list[str], tmp_path: Path) -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kinds = nn.ModuleList(map(Surroundings, kinds))  # of other weights each: equal ones are shared

        def forward(self, x: Tensor) -> list[Tensor]:
            return [output for kind in self.kinds for output in kind(x)]

    model = All().eval()
    x = torch.randn(2, 9, 8, generator=torch.Generator().manual_seed(2))

    # The export compares itself with PyTorch, with the kernels and with the functions.
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))

    assert result.checked == ["onnxruntime kernel", "onnxruntime function"]
    graph = onnx.load(tmp_path / "m.onnx").graph
    # As torch's outputs are named, whatever was rewritten.
    assert [output.name for output in graph.output] == [f"y_{i}" for i in range(len(model(x)))]
    # A node of ours is of the variant that its name ends with.
    operators = [(node.name, node.op_type.partition("_")[0]) for node in graph.node]
    for i, kind in enumerate(kinds):
        its = [operator for name, operator in operators if name.startswith((f"kinds.{i}.", f"kinds.{i}/"))]
        assert {PLAIN, GATED} & {*its}, kind
        assert ("Split" not in its, GATED in its) == REWRITTEN[kind], kind
    split = [kind for kind in kinds if not REWRITTEN[kind][0]]
    assert [operator for _, operator in operators].count("Split") == len(split)


class Shared(nn.Module):
    """One mixer that is called twice, and weights that are used in both directions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixer = PolynomialMixer(32, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mixer(x, mask="causal") + self.mixer(x)
        return (
            y @ self.mixer.ag_proj.weight @ torch.ones(64, 32) + (self.mixer(y) @ self.mixer.qc_proj.weight.T)[..., :32]
        )


@pytest.mark.slow
def test_weights_with_several_users_are_stored_no_more_often(tmp_path: Path) -> None:
    model = Shared().eval()
    x = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(2))
    stored = {}
    for optimize in (False, True):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,), optimize=optimize)
        stored[optimize] = sum(np.prod(tensor.dims) for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer)
    assert stored[True] <= stored[False]


def test_float16_is_not_factored(tmp_path: Path) -> None:
    # Factored, a product that an almost closed gate keeps within float16's range would overflow.
    mixer = PolynomialMixer(8, 3, 2, n_sel_heads=4)
    pom_export.export(mixer, tmp_path / "m.onnx", dtype="float16")
    assert op_types(ir.load(tmp_path / "m.onnx")) == ["MatMul", "MatMul", GATED, "MatMul"]


def test_a_taken_name_is_not_taken_again(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = PolynomialMixer(8, 3, 2)
            self.register_buffer("linear", torch.full((8,), 2.0))
            self.mixer.qc_proj.register_module("weight_transposed", nn.ParameterList([torch.ones(8), torch.ones(8)]))

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.mixer.qc_proj.weight_transposed
            return self.mixer(x) * first + second * self.linear

    x = torch.randn(2, 9, 8)
    assert pom_export.export(Named().eval(), tmp_path / "m.onnx", example_inputs=(x,)).checked
