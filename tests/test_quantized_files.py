"""Every command takes a quantized file, or says in one line why not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pom_export
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.graph.quantized.operators import rounded_activation_notes, shared_scale_notes
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig
from pom_export.runtime import StreamPool
from tests.other_runtimes import run_with_openvino
from tests.quantized_files import FORMS, quantize

VOCABULARY = 48


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = LanguageModelConfig(VOCABULARY, 2, 3, 40, MixerConfig(32, 3, 2))
    module = LanguageModel(config).eval().requires_grad_(requires_grad=False)
    folder = tmp_path_factory.mktemp("original")
    pom_export.export(module, folder / "m.onnx", stateful=True)
    pom_export.export(module, folder / "plain.onnx")
    torch.save(module.state_dict(), folder / "m.pt")
    return folder / "m.onnx"


@pytest.fixture
def quantized(original: Path, tmp_path: Path) -> Any:
    def made(form: str = "int4 blocks") -> Path:
        quantize(original, tmp_path / "q.onnx", form)
        return tmp_path / "q.onnx"

    return made


@pytest.mark.parametrize("form", FORMS)
def test_inspect_says_how(quantized: Any, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = quantized(form)
    found = pom_export.inspect(path).to_dict()["quantized"]
    (kind,) = found["products"]
    assert (kind["weights"], kind["count"]) == (form[:4], 11)
    assert run(["inspect", str(path)]) == 0
    assert f"11 products with weights in {form[:4]}, activations {kind['activations']}" in capsys.readouterr().out


def test_inspect_has_nothing_to_say_of_other_files(original: Path) -> None:
    assert pom_export.inspect(original).to_dict()["quantized"] is None


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_goes_on(quantized: Any, form: str) -> None:
    session = pom_export.StreamingSession(quantized(form), batch=2)
    ids = np.random.default_rng(0).integers(0, VOCABULARY, (2, 5))
    assert np.isfinite(session.prefill(ids)).all()
    assert session.step(ids[:, 0]).shape == (2, VOCABULARY)


def steps(path: Path, streams: int) -> Any:
    """Return the outputs of 8 streams after each of 6 tokens, from pools with some of them at a time, (6, 8, V)."""
    ids = np.random.default_rng(1).integers(0, VOCABULARY, (6, 8))
    found = []
    for first in range(0, 8, streams):
        pool = StreamPool(path, streams=streams, prefix_bytes=0)
        opened = [pool.open() for _ in range(streams)]
        outputs = []
        for tokens in ids[:, first : first + streams]:
            pool.step(opened, tokens)
            answers = pool.tick()
            assert list(answers.streams) == opened
            outputs.append(answers.outputs)
        found.append(np.stack(outputs))
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("form", ["int4 blocks", "int8 blocks"])
def test_a_pool_of_weights_in_blocks_gives_each_stream_its_own_numbers(quantized: Any, form: str) -> None:
    path = quantized(form)
    assert np.array_equal(steps(path, 8), steps(path, 1))
    assert shared_scale_notes(path) == []
    assert "how a prompt is cut into calls" in rounded_activation_notes(path)[0]


def test_one_scale_per_call_is_told_since_streams_affect_each_other(quantized: Any) -> None:
    path = quantized("int8 columns")
    assert np.abs(steps(path, 8) - steps(path, 1)).max() > 1e-4
    assert "one scale per call" in shared_scale_notes(path)[0]
    assert rounded_activation_notes(path) == []


@pytest.mark.parametrize("form", ["int4 blocks, float32 activations", "int8 pairs"])
def test_nothing_is_told_where_no_activations_are_rounded(quantized: Any, form: str) -> None:
    path = quantized(form)
    assert shared_scale_notes(path) + rounded_activation_notes(path) == []


@pytest.mark.parametrize(("form", "calls"), [("int8 blocks", 1), ("int8 columns", 4)])
def test_sequences_share_calls_only_where_rows_are_independent(
    original: Path, tmp_path: Path, form: str, calls: int
) -> None:
    quantize(original.with_name("plain.onnx"), tmp_path / "q.onnx", form)
    np.savez(tmp_path / "in.npz", input_ids=np.random.default_rng(2).integers(0, VOCABULARY, (4, 9)))
    result = pom_export.run_files(tmp_path / "q.onnx", tmp_path / "in.npz", tmp_path / "out.npz")
    assert result.calls == calls
    assert any("run by itself" in note for note in result.notes) == (calls > 1)


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("int4 blocks", "how a prompt is cut into calls"),
        ("int8 columns", "one scale per call"),
        ("int8 pairs", ""),
    ],
)
def test_a_server_says_at_its_start_what_shows_in_its_answers(quantized: Any, form: str, told: str) -> None:
    command = [sys.executable, "-m", "pom_export", "serve", str(quantized(form)), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    said = [line for line in errors.splitlines() if "round" in line]
    assert len(said) == bool(told), errors
    assert all(told in line for line in said)


def test_inline_says_what_to_do(quantized: Any, original: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="MatMulNBits") as caught:
        pom_export.inline(quantized(), tmp_path / "inlined.onnx")
    assert "quantize the inlined file" in caught.value.hint
    pom_export.inline(quantized("int8 columns"), tmp_path / "inlined.onnx")
    # What the hint says can be done.
    pom_export.inline(original, tmp_path / "first.onnx")
    quantize(tmp_path / "first.onnx", tmp_path / "then.onnx")
    ids = {"input_ids": np.zeros((1, 4), np.int64)} | _empty(tmp_path / "then.onnx")
    assert pom_export.verify(tmp_path / "then.onnx", checkpoint=original.with_suffix(".pt"), inputs=ids)


def _empty(path: Path) -> dict[str, Any]:
    session = pom_export.inference_session(path)
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    return {
        each.name: np.zeros([1 if isinstance(axis, str) else axis for axis in each.shape], types[each.type])
        for each in session.get_inputs()
        if each.name.startswith("past")
    }


def test_files_that_round_are_timed_side_by_side(quantized: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", str(quantized()), "--tokens", "64", "--repeats", "1", "--json"]) == 0
    assert {"kernel", "function"} <= set(json.loads(capsys.readouterr().out)["points"][0]["timings"])


@pytest.mark.parametrize("form", ["int4 blocks", "int8 columns"])
def test_a_package_says_whose_rows_affect_each_other(quantized: Any, form: str, tmp_path: Path) -> None:
    result = pom_export.package(quantized(form), tmp_path / "package", target="triton")
    assert any("one scale per call" in note for note in result.notes) == (form == "int8 columns")


@pytest.mark.slow
def test_openvino_rounds_no_activations_where_told(quantized: Any, original: Path) -> None:
    given = ["--checkpoint", str(original.with_suffix(".pt")), "--backends", "openvino", "--json"]
    for form in ("int4 blocks", "int8 blocks", "int4 blocks, float32 activations"):
        done = run_with_openvino("-m", "pom_export", "verify", str(quantized(form)), *given)
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert {each["backend"] for each in report["comparisons"]} == {"openvino"}


@pytest.mark.slow
def test_a_package_for_openvino(quantized: Any, tmp_path: Path) -> None:
    made = ("-m", "pom_export", "package", "--for", "openvino", "-o")
    done = run_with_openvino(*made, str(tmp_path / "package"), str(quantized()))
    assert done.returncode == 0, done.stderr
    assert "activations are in float32 in the package" in done.stdout
    settings = json.loads((tmp_path / "package" / "config.json").read_text())["CPU"]
    assert settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == 0
    assert json.dumps(settings) in (tmp_path / "package" / "README.md").read_text()
    done = run_with_openvino(str(tmp_path / "package" / "preflight.py"))
    assert done.returncode == 0, done.stderr
    done = run_with_openvino(*made, str(tmp_path / "other"), str(quantized("int8 columns")))
    assert done.returncode == 2
    assert "rounds activations with one scale per call" in done.stderr
    assert not (tmp_path / "other").exists()
