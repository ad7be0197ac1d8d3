"""A user's own causal model with a state: export, stream, generate, verify."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import pom_export
from pom_export.api.exporting import ExportResult
from pom_export.errors import InputError, ParityError
from pom_export.graph.exported_model import read_model
from pom_export.graph.outputs import named_outputs
from pom_export.text.generation import Generation
from pom_export.text.notes import Settings
from pom_export.text.sampling import Sampling
from pom_export.text.tokenizers import choose_tokenizer
from tests.attention_models import ATTENTION
from tests.causal_models import LAST_TOKEN, MODELS, TABLE, WIDTH, LastToken, MovingAverage, WithOwnLayer
from tests.slow_cases import slow_cases

# The others are exported in `make test-all`, but for one with a context, of which one test is quick.
QUICK = ("learned positions",)
SAME = 1e-5
SETTINGS = Settings(Sampling(), "bytes")


@dataclass(frozen=True)
class Exported:
    """A model with its file, example inputs, and its own outputs for them."""

    model: nn.Module
    file: Path
    feed: Mapping[str, Tensor]
    expected: np.ndarray[Any, Any]
    result: ExportResult


Exports = Callable[[str], Exported]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export models by name, each once."""
    folder = tmp_path_factory.mktemp("own_state")

    @functools.cache
    def export(name: str) -> Exported:
        torch.manual_seed(0)
        make, examples = MODELS[name]
        model, feed = make().eval(), examples()
        file = folder / f"{name.replace(' ', '_')}.onnx"
        result = pom_export.export(model, file, example_inputs=feed, stateful=True, samples=3)
        with torch.no_grad():
            expected = next(iter(named_outputs(model(**feed)).values())).numpy()
        return Exported(model, file, feed, expected, result)

    return export


@pytest.fixture(scope="module", params=slow_cases(list(MODELS), lambda name: name not in QUICK, str))
def exported(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    return exports(request.param)


@pytest.fixture(scope="module")
def learned(exports: Exports) -> Exported:
    return exports("learned positions")


def _arrays(feed: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in feed.items()}


def test_a_session_gives_what_one_pass_gives(exported: Exported) -> None:
    assert exported.result.checked == ["onnxruntime kernel", "onnxruntime function"]
    session = pom_export.StreamingSession(exported.file, batch=2)
    tokens = exported.feed[session.tokens.name].numpy()
    file = {spec.name for spec in session.model.inputs}
    others = {name: array for name, array in _arrays(exported.feed).items() if name in file - {session.tokens.name}}
    parts = [session.prefill(tokens[:, :3], **others)]
    parts += [session.step(tokens[:, at], **session.inputs_of_call(others))[:, None].copy() for at in range(3, 9)]
    found = np.concatenate(parts, axis=1)
    assert np.abs(found - exported.expected).max() < SAME * np.abs(exported.expected).max()
    session.reset()
    last = session.prefill_last(tokens, chunk=4, **others)
    assert np.abs(last - exported.expected[:, -1]).max() < SAME * np.abs(exported.expected).max()


def test_verify_compares_calls_with_one_pass(exported: Exported) -> None:
    report = pom_export.verify(exported.file, module=exported.model, example_inputs=exported.feed)
    assert report
    assert {(each.backend, each.path) for each in report.comparisons} == {
        ("onnxruntime", "kernel"),
        ("onnxruntime", "function"),
    }
    assert all(len(each.cases) >= 5 for each in report.comparisons)
    changed = _with_other_weight(exported.model)
    assert not pom_export.verify(exported.file, module=changed, example_inputs=exported.feed)


def _with_other_weight(model: nn.Module) -> nn.Module:
    changed = copy.deepcopy(model)
    with torch.no_grad():
        next(changed.parameters()).mul_(1.05)
    return changed


def test_verify_compares_the_sequences_that_are_given(learned: Exported) -> None:
    inputs = _arrays(learned.feed)
    assert pom_export.verify(learned.file, module=learned.model, inputs=inputs)
    with pytest.raises(InputError, match="idx has 65 tokens"):
        pom_export.verify(learned.file, module=learned.model, inputs={"idx": np.zeros((1, TABLE + 1), np.int64)})


@pytest.mark.slow
def test_a_model_of_the_last_token(tmp_path: Path) -> None:
    model, file, feed = LastToken(LAST_TOKEN["index"]).eval(), tmp_path / "m.onnx", MODELS["learned positions"][1]()
    result = pom_export.export(model, file, example_inputs=feed, stateful=True)
    assert result.notes == ["the file gives every token's output, the model only the last token's"]
    assert pom_export.verify(file, module=model, example_inputs=feed)
    assert not pom_export.verify(file, module=_with_other_weight(model), example_inputs=feed)
    with torch.no_grad():
        expected = model(**feed)[0].numpy()
    session = pom_export.StreamingSession(file, batch=2)
    np.testing.assert_allclose(session.prefill_last(feed["idx"].numpy(), chunk=4), expected, rtol=1e-4, atol=1e-5)


def test_recorded_calls_are_compared_again(learned: Exported) -> None:
    report = pom_export.verify(learned.file)
    assert report
    assert [len(each.cases) for each in report.comparisons] == [3, 3]
    assert "in 13 calls" in report.comparisons[0].cases[1].case


@pytest.mark.slow
def test_debug_names_the_module(learned: Exported, tmp_path: Path) -> None:
    model, file = onnx.load(learned.file), tmp_path / "changed.onnx"
    (weight,) = (each for each in model.graph.initializer if each.name == "blocks.1.mixer.se_bias")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.1), weight.name))
    onnx.save(model, file)
    report = pom_export.debug(file, module=learned.model, example_inputs=learned.feed)
    assert (bool(report), report.first) == (False, "blocks.1.mixer")


@pytest.mark.slow
def test_debug_names_none_in_a_right_file(learned: Exported) -> None:
    assert pom_export.debug(learned.file, module=learned.model, example_inputs=learned.feed)


def test_weights_and_nodes_have_the_names_of_the_model(learned: Exported) -> None:
    graph = onnx.load(learned.file).graph
    weights = {tensor.name for tensor in graph.initializer}
    assert {"positions.weight", "blocks.1.mixer.po_coeff", "blocks.0.norm.bias"} <= weights
    names = {node.name.split("/")[0] for node in graph.node}
    assert {"tokens", "blocks.0.mixer", "blocks.1.mixer.ag_proj", "blocks.1.mlp.0", "head"} <= names


@pytest.mark.slow
def test_debug_of_a_file_with_a_mask(learned: Exported, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    pom_export.export(learned.model, file, example_inputs=learned.feed, stateful=True, mask="padding")
    report = pom_export.debug(file, module=learned.model, example_inputs=learned.feed)
    assert (bool(report), report.notes) == (True, ["each call was compared with one pass over all tokens"])


def test_a_session_keeps_to_the_table_of_positions(learned: Exported) -> None:
    assert read_model(learned.file).limits.tokens == TABLE
    session = pom_export.StreamingSession(learned.file)
    session.prefill(np.zeros((1, TABLE), np.int64))
    with pytest.raises(InputError, match=f"{TABLE + 1} tokens are more than .* {TABLE} positions"):
        session.step(1)
    session.reset()
    with pytest.raises(InputError, match="idx holds 50"):
        session.step(50)


def test_a_text_is_generated_up_to_the_last_position(learned: Exported) -> None:
    session = pom_export.StreamingSession(learned.file)
    generation = Generation(session, choose_tokenizer("bytes", 50), SETTINGS)
    generation.prompt("!")
    while generation.advance(2 * TABLE):
        pass
    assert (generation.ended, session.length) == ("positions", TABLE)


@pytest.mark.parametrize("name", slow_cases(list(ATTENTION), lambda name: name != "window", str))
def test_attention_continues_as_a_loop_in_pytorch_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, ids = ATTENTION[name]().eval(), tmp_path / "m.onnx", [[7, 1, 4]]
    result = pom_export.export(model, file, example_inputs={"idx": torch.tensor(ids * 2)}, stateful=True)
    assert result.checked == ["onnxruntime kernel", "onnxruntime function"]
    session = pom_export.StreamingSession(file)
    logits = session.prefill_last(np.array(ids))
    for _ in range(20):
        with torch.no_grad():
            expected = model(torch.tensor(ids))[:, -1].numpy()
        np.testing.assert_allclose(logits, expected, atol=SAME * np.abs(expected).max())
        ids[0].append(int(logits[0].argmax()))
        logits = session.step(ids[0][-1])


def test_a_context_is_given_once(exports: Exports) -> None:
    file = exports("encoder-decoder").file
    session = pom_export.StreamingSession(file)
    source = np.arange(6)[None]
    with pytest.raises(InputError, match="src is missing"):
        session.step(1)
    session.step(1, src=source)
    with pytest.raises(InputError, match="src was given in the first call"):
        session.step(1, src=source)
    resumed = pom_export.StreamingSession(file)
    resumed.restore(session.snapshot())
    np.testing.assert_array_equal(resumed.step(2), session.step(2))
    generation = Generation(resumed, choose_tokenizer("bytes", 50), SETTINGS, inputs={"src": source})
    resumed.reset()
    generation.prompt("!#")
    assert [generation.advance(3) for _ in range(3)] == [True] * 3
    with pytest.raises(InputError, match="the state has taken in src already"):
        Generation(resumed, choose_tokenizer("bytes", 50), SETTINGS, generation.state(), inputs={"src": source})


class _Wrong(MovingAverage):
    def stream(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, present = super().stream(x, state)
        return y, {"average": 0.9 * present["average"]}


class _Cancelling(WithOwnLayer):
    """A model that loses digits in float32: its outputs are differences of numbers 300 times as large."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.average, self.head = layer, nn.Linear(WIDTH, 50)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = super().forward(input_ids)
        return self.head(x + 300) - self.head.weight.sum(1) * 300


class _SlightlyWrong(MovingAverage):
    def stream(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        y, present = super().stream(x, state)
        return y, {"average": 0.99 * present["average"]}


def test_bounds_grow_with_the_error_of_the_model_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, file, feed = _Cancelling(MovingAverage()).eval(), tmp_path / "m.onnx", MODELS["own layer"][1]()
    result = pom_export.export(model, file, example_inputs=feed, stateful=True, samples=3)
    assert any("PyTorch in float32 is off by up to" in note for note in result.notes)
    assert pom_export.verify(file)
    assert not pom_export.verify(file, module=_with_other_weight(model), example_inputs=feed)
    assert not pom_export.verify(file, rtol=1e-6)
    wrong = _Cancelling(_SlightlyWrong()).eval()
    with pytest.raises(ParityError, match="differs from PyTorch"):
        pom_export.export(wrong, tmp_path / "wrong.onnx", example_inputs=feed, stateful=True)


class _WithoutState(MovingAverage):
    def stream(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return super().stream(x, state)[0], {}


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        pytest.param(_Wrong, ParityError, "differs from PyTorch", marks=pytest.mark.slow),
        (_WithoutState, InputError, r"stream\(\) of average \(_WithoutState\) returns a state of"),
    ],
)
def test_a_layer_that_streams_wrong_is_refused(
    tmp_path: Path, layer: type[nn.Module], error: type[Exception], message: str
) -> None:
    make, examples = MODELS["own layer"]
    model = make().eval()
    model.average = layer()
    assert isinstance(model.average, pom_export.StatefulLayer)
    with pytest.raises(error, match=message):
        pom_export.export(model, tmp_path / "m.onnx", example_inputs=examples(), stateful=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    make, examples = MODELS["hybrid"]
    torch.manual_seed(0)
    model, file = make().eval(), tmp_path / "m.onnx"
    result = pom_export.export(model, file, example_inputs=examples(), stateful=True, dtype=dtype)
    assert result.aggregations == 1
    if dtype == "float16":
        assert "onnxruntime without rounding function" in result.checked
        assert pom_export.verify(file, module=model, example_inputs=examples())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dynamic_shapes": {"idx": {0: "batch"}}}, "dynamic_shapes does not apply to a model with a state"),
        ({"mask": "full"}, "`mask='full'` cannot be combined"),
        ({"block_causal": True}, "`block_causal` is for our own models"),
        ({"static": (1, 4)}, "`static` is for our own models"),
    ],
)
def test_options_that_do_not_apply(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    make, examples = MODELS["learned positions"]
    with pytest.raises(InputError, match=message):
        pom_export.export(make(), tmp_path / "m.onnx", example_inputs=examples(), stateful=True, **options)


def test_the_model_is_left_as_it_was(learned: Exported) -> None:
    model = learned.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(part._forward_pre_hooks) for part in model.modules()]
    with torch.no_grad():
        again = model(**learned.feed).numpy()
    np.testing.assert_array_equal(again, learned.expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert hooks == [0] * len(hooks)
    assert model.tokens.weight.shape[1] == WIDTH
