"""Packages in onnxruntime-genai: the tokens are those of our own sessions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import pom_export
from pom_export.errors import InputError
from tests.other_runtimes import ROOT, run_with_genai
from tests.small_models import VOCABULARY, hybrid
from tests.streaming_graphs import running_sum_model

pytestmark = pytest.mark.slow

BYTE_LM = ROOT / "samples" / "checkpoints" / "byte_lm.safetensors"
PROMPT, OTHER = list("The with statement — is".encode()), list(b"import os")
PAD = 256


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's language model."""
    path = tmp_path_factory.mktemp("stream") / "stream.onnx"
    pom_export.export(BYTE_LM, path, stateful=True)
    return path


def ask(model: Path, *conversations: list[Any], **options: Any) -> list[Any]:
    """Package a model, if that was not done, and return what onnxruntime-genai answers; see genai_answers.py."""
    folder = model.with_suffix(".package")
    if not folder.exists():
        pom_export.package(model, folder, target="genai")
    asked = folder.with_suffix(".json")
    asked.write_text(json.dumps({"conversations": conversations, "options": options}))
    done = run_with_genai(str(Path(__file__).with_name("genai_answers.py")), str(folder), str(asked))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def best(model: Path, *steps: list[int] | int) -> list[int]:
    """Return the best tokens of one of our sessions: after prompts, so many each time."""
    session = pom_export.StreamingSession(model)
    found: list[int] = []
    logits = np.zeros(0)
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                found.append(int(logits.argmax()))
                logits = session.step(np.array(found[-1:]))[0]
        else:
            logits = session.prefill_last(np.array([step]))[0]
    return found


def test_the_answers_are_those_of_our_session(stream: Path) -> None:
    long = list((ROOT / "README.md").read_bytes()[:900])
    answers = ask(
        stream, [[PROMPT], 120], [[PROMPT], 20, "logits", [OTHER], 40], [[PROMPT, PROMPT[::-1]], 30], [[long], 9]
    )
    assert answers[0] == [best(stream, PROMPT, 120)]
    assert answers[1] == [best(stream, PROMPT, 20, OTHER, 40)]
    assert answers[2] == [best(stream, PROMPT, 30), best(stream, PROMPT[::-1], 30)]
    assert answers[3] == [best(stream, long, 9)]
    assert ask(stream, [[long], 9], chunk_size=128) == answers[3:]


def test_what_would_be_wrong_is_an_error(stream: Path) -> None:
    padded = OTHER + [PAD] * (len(PROMPT) - len(OTHER))
    skipped, uneven = ask(stream, [[PROMPT], 20, [OTHER], 40], [[PROMPT, padded], 5])
    assert "call_get_logits_before_append_tokens" in skipped
    assert "prompts_of_different_lengths_need_a_model_with_a_padding_mask" in uneven
    (beams,) = ask(stream, [[PROMPT], 20], num_beams=3)
    assert "Beam search (num_beams > 1) is not supported" in beams


def test_the_tokenizer_gives_bytes_for_any_text(stream: Path) -> None:
    draw = random.Random(0)
    ranges = [(1, 0x80), (1, 0x800), (0x800, 0xD800), (0xE000, 0x110000)]
    texts = ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(40)) for _ in range(50)]
    texts += ["<|end|>", "  two  spaces\n\n\t", "don't", "".join(map(chr, range(1, 0x180)))]
    for text, (ids, decoded) in zip(texts, ask(stream, *([text] for text in texts)), strict=True):
        assert ids == list(text.encode())
        assert decoded == text.replace("\uffff", "\ufffd")


def test_prompts_of_different_lengths(tmp_path: Path) -> None:
    model = tmp_path / "padding.onnx"
    pom_export.export(BYTE_LM, model, stateful=True, mask="padding")
    prompts = [PROMPT, OTHER, OTHER[:1]]
    padded = [prompt + [PAD] * (len(PROMPT) - len(prompt)) for prompt in prompts]
    (answers,) = ask(model, [padded, 40])
    assert answers == [best(model, prompt, 40) for prompt in prompts]


def test_half_precision(tmp_path: Path) -> None:
    model = tmp_path / "half.onnx"
    pom_export.export(BYTE_LM, model, stateful=True, dtype="float16")
    assert ask(model, [[PROMPT], 60]) == [[best(model, PROMPT, 60)]]
    pom_export.export(BYTE_LM, tmp_path / "bfloat16.onnx", stateful=True, dtype="bfloat16")
    with pytest.raises(InputError, match="it computes in bfloat16, which ONNX Runtime does not"):
        pom_export.package(tmp_path / "bfloat16.onnx", tmp_path / "refused", target="genai")


def test_a_hybrid_with_weights_in_another_file(tmp_path: Path) -> None:
    torch.save(hybrid().state_dict(), tmp_path / "hybrid.pt")
    model = tmp_path / "hybrid.onnx"
    pom_export.export(tmp_path / "hybrid.pt", model, stateful=True, heads=4, degree=2, mask="padding")
    graph = onnx.load(model)
    onnx.save(graph, model, save_as_external_data=True, location="hybrid.data", size_threshold=1024)
    prompts = [[3, 1, 4, 1, 5], [9, 2]]
    padded = [prompts[0], prompts[1] + [VOCABULARY] * 3]
    answers = ask(model, [padded, 12], [prompts[:1], 6, "logits", [[2, 6]], 6])
    assert answers[0] == [best(model, prompt, 12) for prompt in prompts]
    assert answers[1] == [best(model, prompts[0], 6, [2, 6], 6)]


def test_a_model_of_few_positions(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", tokens=20)
    ask(model, ["text"])
    folder = model.with_suffix(".package")
    assert run_with_genai(str(folder / "preflight.py")).returncode == 0
    done = run_with_genai(str(folder / "client.py"), "0123456789", "--tokens", "40")
    assert (done.returncode, done.stderr) == (0, "")
    done = run_with_genai(str(folder / "client.py"), "0123456789" * 2)
    assert done.stderr == "the prompt has 20 tokens, but the model has 20 positions\n"


def test_a_tokenizer_of_its_own(tmp_path: Path) -> None:
    """What onnxruntime-genai gives for texts is what the tokenizers library does, which is what preflight compares."""
    text = ROOT / "docs" / "export.md"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = running_sum_model(tmp_path / "m.onnx", vocabulary=410)
    folder = model.with_suffix(".package")
    pom_export.package(model, folder, target="genai", tokenizer=str(tmp_path / "tokenizer.json"))
    done = run_with_genai(str(folder / "preflight.py"))
    assert (done.returncode, done.stderr) == (0, "")
    sample = text.read_text()[:500] + " — żółć 日本語"
    ((ids, decoded),) = ask(model, [sample])
    assert (ids, decoded) == (tokenizer.encode(sample).ids, sample)


def test_its_own_programs(stream: Path) -> None:
    ask(stream, ["text"])
    folder = stream.with_suffix(".package")
    done = run_with_genai(str(folder / "preflight.py"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "the same 48 tokens, and the same ids for 2 texts" in done.stdout
    done = run_with_genai(str(folder / "client.py"), "The with statement", "--tokens", "60")
    expected = bytes(best(stream, list(b"The with statement"), 60)).decode()
    assert (done.returncode, done.stdout) == (0, expected + "\n")
