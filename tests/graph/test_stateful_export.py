"""Stateful exports in ONNX Runtime: any split into calls gives one causal pass of the official code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import pom_export
from pom_export.api.exporting import ExportResult
from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, is_past, present_name, read_model
from pom_export.mixer import PolynomialMixer, RotaryPolynomialMixer
from pom_export.parity import tolerances
from tests.slow_cases import slow_cases
from tests.small_models import VOCABULARY, hybrid

Array = npt.NDArray[Any]
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
# One of each form; a rotation is in tests below, and all others together are slow.
ALWAYS = {"v1_grouped", "v2_groups_bias"}
CASES = sorted(GOLDEN.iterdir())
SELF_MIXING = slow_cases(
    (f for f in CASES if not f.name.startswith(("gpt", "jit")) and "cross" not in f.name),
    lambda name: name not in ALWAYS,
    name=lambda folder: folder.name,
)
# The hybrid among them takes long to trace: tests/runtime/streaming/test_exports.py, in rows of different lengths.
LANGUAGE_MODELS = slow_cases(
    (f for f in CASES if f.name.startswith("gpt") and f.name != "gpt_hybrid"),
    lambda _: True,  # the hybrid below is quick
    name=lambda folder: folder.name,
)
PATHS = [pytest.param(True, id="kernel"), pytest.param(False, id="function")]


class Calls:
    """A file in ONNX Runtime, and the state left by the last call."""

    def __init__(self, model: Path, batch: int, kernels: bool) -> None:
        self.exported: ExportedModel = read_model(model)
        self.session = pom_export.inference_session(model, kernels=kernels)
        self.past = {
            spec.name: np.zeros([batch, *(axis if isinstance(axis, int) else 0 for axis in spec.axes[1:])], spec.dtype)
            for spec in self.exported.inputs
            if is_past(spec.name)
        }

    def __call__(self, **feed: Array) -> Array:
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, {**feed, **self.past}), strict=True))
        self.past = {name: outputs[present_name(name)] for name in self.past}
        result: Array = outputs[names[0]]
        return result


def split(tokens: int, seed: int) -> Iterator[slice]:
    """Yield slices of random lengths that add up to `tokens`; about half of them hold a single token."""
    random, begin = np.random.default_rng(seed), 0
    while begin < tokens:
        end = min(tokens, begin + (1 if random.random() < 0.5 else int(random.integers(2, 12))))
        yield slice(begin, end)
        begin = end


def assert_close(actual: Array, expected: Array, tolerance: tolerances.Tolerance = tolerances.GOLDEN) -> None:
    assert actual.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(actual.astype(np.float64) - expected).max() <= tolerance.relative * largest + tolerance.absolute


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both paths of a case find one export."""
    return tmp_path_factory.mktemp("stateful")


@pytest.mark.parametrize("golden", SELF_MIXING, indirect=True)
@pytest.mark.parametrize("kernels", PATHS)
def test_any_split_gives_the_official_causal_outputs(golden: Any, kernels: bool, folder: Path) -> None:
    model, positions = folder / f"{golden.folder.name}.onnx", golden.positions
    if not model.exists():
        pom_export.export(golden.checkpoint, model, stateful=True, positions=positions is not None)
    x = golden.arrays["xq"].astype(np.float32)
    expected = golden.arrays.get("y_causal")
    if expected is None:  # the official code gives none for positions of rows and columns
        mixer = pom_export.load_checkpoint(golden.checkpoint).double()
        with torch.no_grad():
            expected = mixer(torch.from_numpy(x).double(), None, None, torch.from_numpy(positions), causal=True).numpy()
    for seed in range(3):
        calls, outputs = Calls(model, len(x), kernels), []
        for part in split(x.shape[1], seed):
            given = {} if positions is None else {"positions": positions[part]}
            outputs.append(calls(x=x[:, part], **given))
        assert_close(np.concatenate(outputs, axis=1), expected)


@pytest.mark.parametrize("golden_gpt", LANGUAGE_MODELS, indirect=True)
@pytest.mark.parametrize("kernels", PATHS)
def test_any_split_gives_the_public_language_models_logits(golden_gpt: Any, kernels: bool, folder: Path) -> None:
    model = folder / f"{golden_gpt.folder.name}.onnx"
    if not model.exists():
        pom_export.export(golden_gpt.checkpoint, model, stateful=True)
    ids, expected = golden_gpt.arrays["input_ids"], golden_gpt.arrays["logits"]
    for seed in range(3):
        calls = Calls(model, len(ids), kernels)
        outputs = [calls(input_ids=ids[:, part]) for part in split(ids.shape[1], seed)]
        assert_close(np.concatenate(outputs, axis=1), expected)


@pytest.mark.parametrize("case", slow_cases(["v2_base", "v2_groups_bias"], lambda name: name != "v2_base"))
@pytest.mark.parametrize("kernels", PATHS)
def test_block_causal_calls_give_the_official_state_forward(case: str, kernels: bool, folder: Path) -> None:
    golden, model = GOLDEN / case, folder / f"{case}-block-causal.onnx"
    if not model.exists():
        pom_export.export(golden / "checkpoint.pt", model, stateful=True, block_causal=True)
    frames = json.loads((golden / "config.json").read_text())["state_frames"]
    arrays = dict(np.load(golden / "io.npz"))
    x = arrays["xq"].astype(np.float32)
    calls = Calls(model, len(x), kernels)
    # The official code counts calls: with equally many tokens per call, that is the mean over tokens.
    outputs = [calls(x=frame) for frame in np.split(x, frames, axis=1)]
    assert_close(np.concatenate(outputs, axis=1), arrays["y_state"])
    assert calls.exported.stateful == "block-causal"


@pytest.fixture(scope="module")
def hybrid_file(folder: Path) -> tuple[Path, ExportResult]:
    """Return a masked hybrid's export, which takes long to trace."""
    return folder / "hybrid.onnx", pom_export.export(hybrid(), folder / "hybrid.onnx", stateful=True, mask="padding")


@pytest.mark.parametrize("kernels", PATHS)
def test_rows_of_a_ragged_prefill_go_on_each_by_itself(kernels: bool, hybrid_file: tuple[Path, ExportResult]) -> None:
    model = hybrid()
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (3, 12))
    lengths = np.array([9, 4, 1])
    calls = Calls(hybrid_file[0], 3, kernels)
    first = calls(input_ids=ids[:, :9], mask=np.arange(9) < lengths[:, None])
    steps = [np.take_along_axis(ids, (lengths + i)[:, None], axis=1) for i in range(3)]
    following = np.concatenate([calls(input_ids=step, mask=np.ones((3, 1), bool)) for step in steps], axis=1)
    for row, length in enumerate(lengths):
        expected = model.double()(torch.from_numpy(ids[row : row + 1, : length + 3]))[0].numpy()
        assert_close(np.concatenate([first[row, :length], following[row]]), expected)
    assert calls.past["past_length"].tolist() == [12, 7, 4]


def test_only_the_attention_layers_of_a_hybrid_keep_keys(hybrid_file: tuple[Path, ExportResult]) -> None:
    result = hybrid_file[1]
    assert result.inputs == [
        "input_ids int64[batch, tokens]",
        "mask bool[batch, tokens]",
        "past_length int64[batch]",
        "past_state float32[batch, 2, 2, 64]",
        "past_key_values.1.key float32[batch, 4, past_tokens, 4]",
        "past_key_values.1.value float32[batch, 4, past_tokens, 4]",
    ]
    assert [output.split()[0] for output in result.outputs] == [
        "logits",
        "present_length",
        "present_state",
        "present.1.key",
        "present.1.value",
    ]


def test_nodes_keep_the_names_of_their_modules(hybrid_file: tuple[Path, ExportResult]) -> None:
    assert read_model(hybrid_file[0]).aggregations == [
        f"transformer.h.{layer}.attn.pom/GatedPolynomialAggregation" for layer in (0, 2)
    ]


@pytest.mark.slow
def test_a_half_precision_model_keeps_its_state_in_float32(tmp_path: Path) -> None:
    # The model of the tests above, of which a trace is kept.
    options = {"stateful": True, "mask": "padding", "dtype": "float16", "samples": 1}
    result = pom_export.export(hybrid(), tmp_path / "m.onnx", **options)
    assert "past_key_values.1.key float16[batch, 4, past_tokens, 4]" in result.inputs
    assert "past_state float32[batch, 2, 2, 64]" in result.inputs
    assert "present_state float32[batch, 2, 2, 64]" in result.outputs
    assert pom_export.verify(tmp_path / "m.onnx")


def test_a_mixer_in_bfloat16_keeps_its_state_in_float32(tmp_path: Path) -> None:
    mixer = PolynomialMixer(8, 2, 2).eval()
    result = pom_export.export(mixer, tmp_path / "m.onnx", stateful=True, dtype="bfloat16", samples=1)
    assert result.inputs[1] == "past_state float32[batch, 1, 2, 16]"
    assert pom_export.verify(tmp_path / "m.onnx")


def test_verify_compares_with_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = GOLDEN / "rope1d" / "checkpoint.pt"
    pom_export.export(checkpoint, tmp_path / "m.onnx", stateful=True, block_causal=True, mask="padding")
    report = pom_export.verify(tmp_path / "m.onnx", checkpoint=checkpoint)
    assert report
    assert {comparison.output for comparison in report.comparisons} == {"y", "present_state", "present_length"}


def test_only_padding_is_at_positions_past_the_last_one(tmp_path: Path) -> None:
    """A row of a rotary mixer may fill its positions while a shorter row is padded beyond them."""
    torch.manual_seed(0)
    mixer = RotaryPolynomialMixer(8, 2, 2, max_seq_len=8).eval()
    pom_export.export(mixer, tmp_path / "m.onnx", stateful=True, mask="padding")
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    calls = Calls(tmp_path / "m.onnx", 2, kernels=True)
    calls(x=x, mask=np.array([[True] * 4, [True] * 4]))
    calls(x=x, mask=np.array([[True] * 4, [True] * 2 + [False] * 2]))
    last = calls(x=x[:, :2], mask=np.array([[False, False], [True, True]]))
    with torch.no_grad():
        whole = mixer(torch.from_numpy(np.concatenate([x[1], x[1, :2], x[1, :2]])[None]), causal=True)
    assert_close(last[1], whole[0, -2:].numpy())


def _refused(options: dict[str, Any], model: Any = None) -> str:
    model = PolynomialMixer(8, 2, 2).eval() if model is None else model
    with pytest.raises(InputError) as refused:
        pom_export.export(model, "m.onnx", **options)
    return str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stateful": True, "mask": "full"}, "`mask='full'` cannot be combined with this kind of state"),
        ({"stateful": True, "mask": "none"}, "With `stateful` alone, leave `mask` out or use `mask='padding'`"),
        ({"stateful": True, "block_causal": True, "mask": "causal"}, "With `block_causal`, leave `mask` out"),
        ({"stateful": True, "cross": True}, "`cross` cannot be combined with `stateful`"),
        ({"block_causal": True}, "Give `stateful=True` too"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    options: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in _refused(options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_causal": True}, "a language model is causal; `block_causal` does not apply"),
        ({"static": (1, 4)}, "the keys of self-attention grow with every call"),
    ],
)
def test_what_a_hybrid_does_not_support_is_refused(options: dict[str, Any], message: str) -> None:
    assert message in _refused({"stateful": True, **options}, hybrid())


def test_a_static_step_is_exported(tmp_path: Path) -> None:
    result: ExportResult = pom_export.export(
        PolynomialMixer(8, 2, 2).eval(), tmp_path / "m.onnx", stateful=True, static=(1, 1)
    )
    expected: Sequence[str] = ["x float32[1, 1, 8]", "past_state float32[1, 1, 2, 16]", "past_length int64[1]"]
    assert result.inputs == expected
