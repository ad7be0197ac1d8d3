"""Unusual modules: exported, or refused in a line that names what is unusual; and left unchanged."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.outputs import left_out, named_outputs
from pom_export.graph.own_program import named_examples
from pom_export.graph.repeating import check_repeats
from pom_export.parity.comparison import difference
from pom_export.parity.tolerances import MODELS

sys.path.insert(0, str(Path(__file__).parents[1]))
from odd_modules import REFUSED, REFUSED_BY_TORCH, WIDTH, Everything, Fields, Net, Result, example, same

from tests.slow_cases import slow_cases

# Deprecation warnings of torch about its own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.mark.parametrize(
    "name", slow_cases([*REFUSED, *REFUSED_BY_TORCH], {"seeded", "no such operator", "data replaced"}.__contains__)
)
def test_what_cannot_be_exported_is_named(name: str, tmp_path: Path) -> None:
    make, message = {**REFUSED, **REFUSED_BY_TORCH}[name]
    with pytest.raises(InputError, match=message) as caught:
        pom_export.export(make(), tmp_path / "m.onnx", example_inputs=(example(),))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_attention_is_looked_for_in_any_module(name: str) -> None:
    module = REFUSED[name][0]()
    assert pom_export.scan(module) == []
    assert pom_export.replace_attention(module).replaced == []


@pytest.mark.slow
def test_much_at_once_is_exported_and_nothing_of_the_callers_changes(tmp_path: Path) -> None:
    model, x = Everything().train(), example()
    model.mix.po_coeff.requires_grad_(False)
    before, given = copy.deepcopy(model.state_dict()), x.clone()
    torch.manual_seed(5)
    random.seed(5)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    # Modes that the caller may have switched on.
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode(), torch.device("meta"):
            result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_inference_mode_enabled()
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)

    assert [text.split()[0] for text in result.outputs] == [
        "out_logits", "out_hidden_left", "out_hidden_right", "scale", "best_values", "best_indices", "x_out", "odd_a_2",
    ]  # fmt: skip
    assert all("float32" in text for text in [*result.inputs, result.outputs[0]])
    assert [note for note in result.notes if "no tensor" in note] == [
        "the output out_length is no tensor (int) and is not in the file",
        "the output count is no tensor (int) and is not in the file",
    ]
    assert model.training
    assert [p.requires_grad for p in (model.scale, model.mix.po_coeff)] == [True, False]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]

    more = torch.randn(3, 4, WIDTH)
    found = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": more.numpy()})
    wanted = named_outputs(model.eval()(more))
    for one, other in zip(found, wanted.values(), strict=True):
        assert difference(one, other.detach().double().numpy(), MODELS["float32"])


# Each of a tensor of its own: the last is written to.
OF_DATA: dict[str, Callable[[Net, Tensor], Any]] = {
    "alone": lambda _, y: y.data,
    "among others": lambda m, y: (y.data + 1, m.linear(y)),
    "of a weight": lambda m, y: y @ m.linear.weight.data,
    "written in place": lambda _, y: (y.data.clamp_(-0.1, 0.1), y)[1],
}


def test_data_of_a_tensor_is_traced(tmp_path: Path) -> None:
    def every(m: Net, y: Tensor, _: Tensor) -> dict[str, Any]:
        return {name: make(m, y * (2 + i)) for i, (name, make) in enumerate(OF_DATA.items())}

    model = Net(every, linear=nn.Linear(WIDTH, WIDTH)).eval()
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(example(),))
    x = torch.randn(3, 4, WIDTH)
    found = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    with torch.no_grad():
        wanted = named_outputs(model(x))
    assert len(wanted) == len(OF_DATA) + 1
    for (name, other), one in zip(wanted.items(), found, strict=True):
        assert difference(one, other.double().numpy(), MODELS["float32"]), name


def test_a_trace_that_fails_under_vmap_leaves_vmap_off(tmp_path: Path) -> None:
    make, _ = REFUSED_BY_TORCH["bool under vmap"]
    with pytest.raises(InputError):
        pom_export.export(make(), tmp_path / "m.onnx", example_inputs=(example(),))
    assert torch.func.grad(lambda x: x * x)(torch.tensor(3.0)).item() == 6
    assert torch._C._functorch.get_dynamic_layer_stack_depth() == 0


class Wordy(nn.Module):
    """A mixer with one name, whose output has another."""

    def __init__(self, path: str, key: str) -> None:
        super().__init__()
        self.add_module(path, pom_export.PolynomialMixer(WIDTH, 2, 1))
        self.key = key

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        (mixer,) = self.children()
        return {self.key: mixer(x)}


@pytest.mark.parametrize(
    ("path", "key", "message"),
    [
        ("mix", "k" * 3000, r"^the output k+ \[...\] k+ has a name of 3000 characters.*by a shorter key"),
        pytest.param(
            *("m" * 3000, "key", r"^the weight m+ .*\.\w+ has a name of \d+ characters.*modules that hold it shorter"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["output", "weight"],
)
def test_a_name_that_no_file_may_have_is_named(path: str, key: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(Wordy(path, key), tmp_path / "m.onnx", example_inputs=(example(),))
    assert list(tmp_path.iterdir()) == []


class Direct(nn.Module):
    """Calls the documented op directly, without a mixer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.coefficients = nn.Parameter(torch.randn(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.pom.polynomial_aggregation(self.project(x), self.coefficients, None, "causal")


def test_a_module_that_calls_the_op_itself_is_exported(tmp_path: Path) -> None:
    # One token of several, whose values are not contiguous.
    result = pom_export.export(Direct(), tmp_path / "m.onnx", example_inputs=(example()[:, :1],))
    assert result.aggregations == 1
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]"]


@pytest.mark.parametrize("rows", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_axis_that_is_squeezed_has_one_size(rows: int, tmp_path: Path) -> None:
    model = Net(lambda _, y, __: y.squeeze(0))
    result = pom_export.export(model, tmp_path / "m.onnx", example_inputs=(example()[:rows],))
    assert result.inputs == [f"x float32[{rows}, tokens, {WIDTH}]"]
    assert any(note.startswith("dimension 0 of x is fixed") for note in result.notes)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(0, 5, WIDTH),), "example input x is empty"),
        ((torch.zeros(2, 0, WIDTH),), "example input x is empty"),
        ((example().to_sparse(),), "ONNX does not have"),
        ((example().to(torch.complex64),), "ONNX does not have"),
        ((example().to("meta"),), "has no values"),
        ((np.array([["a"]]),), "is an array of"),
        ((3,), "example input x is an int"),
        (3, "example_inputs is an int"),
        ("x", "example_inputs is a str"),
        ({3: example()}, "forward has no input 3"),
    ],
)
def test_invalid_examples_are_refused(inputs: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(Net(same), tmp_path / "m.onnx", example_inputs=inputs)


def test_examples_may_have_another_order_of_bytes() -> None:
    values = example().numpy()
    taken = named_examples(Net(same), (values.astype(">f4"),))
    assert np.array_equal(taken["x"], values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        pytest.param(lambda x: torch.nested.as_nested_tensor([x]), "y is a nested tensor", id="nested"),
        pytest.param(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "y is quantized", id="quantized"),
        pytest.param(lambda x: x.to(torch.float8_e4m3fn), "y is float8_e4m3fn", id="float8"),
        pytest.param(lambda x: {"a": x}.values(), "y is a dict_values, a view of a mapping", id="view"),
    ],
)
def test_outputs_of_other_kinds_are_refused(make: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_outputs(make(torch.ones(2)))


class HalfInside(nn.Module):
    """A mixer in half precision, whatever the modules around it use."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = pom_export.PolynomialMixer(WIDTH, 2, 1).half()
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mix(x.half()).float())


def test_a_model_that_runs_is_not_said_to_fail(tmp_path: Path) -> None:
    message = (
        "with weights in float32 .* fails .*Half.*; the model as you gave it does not. Look for casts to a fixed type"
    )
    with pytest.raises(InputError, match=message):
        pom_export.export(HalfInside(), tmp_path / "m.onnx", example_inputs=(example(),))


def test_nested_examples_are_refused() -> None:
    with pytest.raises(InputError, match="ONNX does not have"):
        named_examples(Net(same), (torch.nested.as_nested_tensor([*example()]),))


@pytest.mark.parametrize(
    "change",
    [
        lambda gain: setattr(gain, "data", gain.data.clamp(max=1)),
        lambda gain: gain.data.clamp_(max=1),
        lambda gain: gain.data[:2].fill_(1),
        lambda gain: gain.detach().clamp_(max=1),
        lambda gain: gain.copy_(gain / gain.norm()),
        lambda gain: torch.clamp(gain, max=1, out=gain.data),
        lambda gain: torch._foreach_mul_([gain], 0.5),
    ],
    ids=["data", "data in place", "a part", "detached", "copy_", "out", "foreach"],
)
def test_weights_that_a_call_changes_stay_as_they_were_and_are_named(change: Callable[[Tensor], None]) -> None:
    def limited(model: Net, y: Tensor, _: Tensor) -> Tensor:
        change(model.gain)
        return y * model.gain

    model = Net(limited, gain=nn.Parameter(torch.full((WIDTH,), 2.0)))
    with pytest.raises(InputError, match="the model changes its gain when it is called"):
        check_repeats(model, {"x": example()})
    assert bool((model.gain == 2).all())


def test_buffers_and_what_is_made_of_weights_may_be_written_to() -> None:
    def counting(model: Net, y: Tensor, _: Tensor) -> Tensor:
        model.seen.zero_()
        return y * (model.gain * 1).clamp_(max=1)

    model = Net(counting, gain=nn.Parameter(torch.full((WIDTH,), 2.0)))
    model.register_buffer("seen", torch.zeros(1))
    check_repeats(model, {"x": example()})


def test_inputs_that_a_model_writes_to_stay_as_they_were(tmp_path: Path) -> None:
    model, x = Net(lambda _, y, x: y + x.add_(1)), example()
    expected = model.mix(x) + x + 1
    pom_export.export(model, tmp_path / "m.onnx", example_inputs=(x,))
    assert torch.equal(x, example())
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    assert difference(y, expected.detach().double().numpy(), MODELS["float32"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y * float("nan"),
        pytest.param(lambda y: y / 0, marks=pytest.mark.slow),
        pytest.param(lambda y: y[:0], marks=pytest.mark.slow),
    ],
)
def test_examples_that_pytorch_gives_no_number_for_are_not_blamed_on_the_file(
    spoil: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ParityError, match="PyTorch itself gives no finite number"):
        pom_export.export(Net(lambda _, y, __: spoil(y)), tmp_path / "m.onnx", example_inputs=(example(),))


def test_an_output_that_holds_itself_is_refused() -> None:
    def endless(_: Net, y: Tensor, __: Tensor) -> list[Any]:
        held: list[Any] = [y]
        held.append(held)
        return held

    with pytest.raises(InputError, match="the output y_1_1 contains itself"):
        check_repeats(Net(endless), {"x": example()})


def test_outputs_are_named_by_fields_keys_and_indices() -> None:
    one, two = torch.ones(1), torch.ones(2)
    assert list(named_outputs(Fields(one, two))) == ["first", "second"]
    assert list(named_outputs([Result(one), Result(two)])) == ["y_0_logits", "y_1_logits"]
    assert list(named_outputs({1: one, "1": two, "": one, "a b": two})) == ["1", "1_", "y", "a_b"]
    assert list(named_outputs(two.max(0))) == ["values", "indices"]
    assert left_out((one, None, "text", torch.Size([1]))) == [
        "the output y_2 is no tensor (str) and is not in the file",
        "the output y_3 is no tensor (Size) and is not in the file",
    ]
