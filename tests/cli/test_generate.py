"""`pom-export generate` as a user meets it."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers

import pom_export
from pom_export.cli.main import run
from pom_export.engine.backend import gpu_present
from tests.small_models import hybrid
from tests.streaming_graphs import running_sum_model

# Warm enough that any bytes occur.
OPTIONS = ["--prompt", "Once upon", "--temperature", "60", "--seed", "3"]
COMMAND = [sys.executable, "-m", "pom_export", "generate"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(running_sum_model(tmp_path / "m.onnx"))


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command and return what it writes to stdout."""
    assert run(["generate", *arguments]) == 0
    return capsys.readouterr().out


def test_the_same_seed_writes_the_same_text(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", model, *OPTIONS, "--max-tokens", "30"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out) > 15
    (line,) = printed.err.splitlines()
    for part in ("30 tokens, ", "prompt 9, ", "state 72 B", "memory "):
        assert part in line
    again = written(capsys, model, *OPTIONS, "--max-tokens", "30")
    assert again == printed.out
    assert written(capsys, model, *OPTIONS[:-1], "4", "--max-tokens", "30") != again


def test_without_a_seed_texts_differ(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = {written(capsys, model, *OPTIONS[:-2], "--max-tokens", "40") for _ in range(2)}
    assert len(texts) == 2
    cold = [model, "--prompt", "a", "--temperature", "0", "--max-tokens", "40"]
    assert written(capsys, *cold) == written(capsys, *cold, "--top-k", "5") == written(capsys, *cold, "--top-p", "0.5")


def test_prints_one_json_object(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, model, *OPTIONS, "--max-tokens", "30")
    assert run(["generate", model, *OPTIONS, "--max-tokens", "30", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    result = json.loads(printed.out)
    assert result["text"] == text
    assert (result["prompt_tokens"], result["generated_tokens"], result["ended"]) == (9, 30, "max_tokens")
    assert (result["tokenizer"], result["seed"], result["state_bytes"]) == ("bytes", 3, 72)
    for name in ("prefill_seconds", "decode_seconds", "tokens_per_second", "prefill_tokens_per_second"):
        assert result[name] > 0
    assert result["peak_rss_bytes"] >= result["rss_bytes"] > 2**20


def test_prompts_come_from_anywhere(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(capsys, model, "--prompt", "ab\n", *OPTIONS[2:])
    (tmp_path / "prompt").write_bytes(b"ab\n")
    assert written(capsys, model, "--prompt-file", str(tmp_path / "prompt"), *OPTIONS[2:]) == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\n")))
    assert written(capsys, model, "--prompt", "-", *OPTIONS[2:]) == expected
    # Any bytes are a prompt of a model of bytes.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert written(capsys, model, "--prompt", "-", *OPTIONS[2:])


def test_a_resumed_run_writes_what_one_run_would(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = written(capsys, model, *OPTIONS, "--max-tokens", "60")
    state = str(tmp_path / "state")
    for parts in ([60], [0, 60], [1, 59], [20, 1, 39], [7] * 8 + [4]):
        text = written(capsys, model, *OPTIONS, "--max-tokens", str(parts[0]), "--save-state", state)
        for part in parts[1:]:
            # The settings are those of the state.
            text += written(capsys, model, "--load-state", state, "--save-state", state, "--max-tokens", str(part))
        # The bytes of an incomplete character are in the state.
        text += written(capsys, model, "--load-state", state, "--max-tokens", "0")
        assert text == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.onnx", "state"]


def test_a_resumed_run_takes_another_prompt_and_settings(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, cold = str(tmp_path / "state"), ["--temperature", "0", "--max-tokens", "10"]
    assert written(capsys, model, "--prompt", "Once", "--max-tokens", "0", "--save-state", state) == ""
    expected = written(capsys, model, "--prompt", "Once upon", *cold)
    assert written(capsys, model, "--load-state", state, "--prompt", " upon", *cold) == expected
    assert written(capsys, model, "--load-state", state, "--prompt", " upon", *cold) == expected


def test_ends_before_a_stop(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = written(capsys, model, *OPTIONS, "--max-tokens", "60")
    stop = text[20:22]
    found = written(capsys, model, *OPTIONS, "--max-tokens", "60", "--stop", stop, "--stop", "never in it")
    assert found == text[: text.index(stop)]


@pytest.fixture
def bad_places(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    names = ("mixer", "stateless", "large", "short", "other", "cut", "plain", "text", "empty", "json")
    places = {name: str(tmp_path / name) for name in names}
    running_sum_model(Path(places["mixer"]), ids=False)
    running_sum_model(Path(places["stateless"]), kind=None)
    running_sum_model(Path(places["large"]), vocabulary=1000)
    running_sum_model(Path(places["short"]), tokens=3)
    running_sum_model(Path(places["other"]), seed=1)
    state = tmp_path / "state"
    written(capsys, model, "--prompt", "a", "--max-tokens", "1", "--save-state", str(state))
    Path(places["cut"]).write_bytes(state.read_bytes()[:700])
    pom_export.StreamingSession(model).snapshot().save(places["plain"])
    Path(places["text"]).write_text("text")
    Path(places["empty"]).write_text("")
    letters = {chr(place): place for place in range(97, 123)}
    tokenizers.Tokenizer(tokenizers.models.BPE(letters, [])).save(places["json"])
    return {**places, "model": model, "state": str(state), "tmp": str(tmp_path)}


BAD_COMMANDS = {
    "no prompt": ("{model}", "there is no prompt"),
    "empty prompt": ("{model} --prompt=", "the prompt is empty"),
    "two prompts": ("{model} --prompt a --prompt-file {text}", "both given"),
    "no prompt file": ("{model} --prompt-file {tmp}/none", "does not exist"),
    "empty prompt file": ("{model} --prompt-file {empty}", "is empty"),
    "no model": ("{tmp}/none.onnx --prompt a", "does not exist"),
    "no ONNX": ("{text} --prompt a", "not a complete ONNX model"),
    "without a state": ("{stateless} --prompt a", "keeps no state. Export it with --stateful"),
    "a mixer": ("{mixer} --prompt a", "takes no token ids. Only a language model generates text"),
    "unknown vocabulary": ("{large} --prompt a", "no tokenizer is known for 1000 tokens"),
    "no tokenizer file": ("{model} --prompt a --tokenizer {tmp}/none.json", "does not exist"),
    "long prompt": ("{short} --prompt abcd", "the prompt ends at token 4, but the model has 3 positions"),
    "negative tokens": ("{model} --prompt a --max-tokens -1", "--max-tokens must be at least 0"),
    "temperature": ("{model} --prompt a --temperature -1", "--temperature must be 0 or more"),
    "nan temperature": ("{model} --prompt a --temperature nan", "got nan"),
    "top-k": ("{model} --prompt a --top-k 0", "--top-k must be at least 1"),
    "top-p": ("{model} --prompt a --top-p 2", "--top-p must be above 0"),
    "seed": ("{model} --prompt a --seed -1", "--seed must be 0 to"),
    "empty stop": ("{model} --prompt a --stop=", "--stop is empty"),
    "no engine": ("{model} --prompt a --engine {tmp}/none", "does not exist"),
    "no state": ("{model} --load-state {tmp}/none", "does not exist"),
    "cut state": ("{model} --load-state {cut}", "not a complete state file"),
    "text as a state": ("{model} --load-state {text}", "not a complete state file"),
    "another's state": ("{other} --load-state {state}", "the state belongs to another model"),
    "a plain state": ("{model} --load-state {plain}", "not saved by generate"),
    "state over the model": ("{model} --prompt a --save-state {model}", "is the input itself"),
    "state below nothing": ("{model} --prompt a --save-state {tmp}/no/no/state", "mkdir -p"),
    "state is a folder": ("{model} --prompt a --save-state {tmp}", "is a folder"),
    "state below a file": ("{model} --prompt a --save-state {text}/state", "Not a directory"),
    "state over the tokenizer": ("{model} --prompt a --tokenizer {json} --save-state {json}", "is the input itself"),
}


@pytest.mark.parametrize("kind", BAD_COMMANDS)
def test_bad_input_ends_in_one_clear_line(
    kind: str, bad_places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    text, message = BAD_COMMANDS[kind]
    arguments = [argument.format(**bad_places) for argument in text.split()]
    assert run(["generate", *arguments, "--json"]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert message in "{error}. {hint}".format(**json.loads(printed.out))
    assert len(printed.err.splitlines()) == 1
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "place",
    ["s" * 256, pytest.param("/proc/state", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"))],
)
def test_a_state_s_place_is_tried_before_any_text(
    place: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", model, *OPTIONS, "--save-state", str(tmp_path / place)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def rename_tokenizer(state: Path, name: str) -> str:
    """Let a state name another tokenizer; return the state's path."""
    loaded = pom_export.State.load(state)
    notes = copy.deepcopy(dict(loaded.notes))
    notes["generate"]["settings"]["tokenizer"] = name
    dataclasses.replace(loaded, notes=notes).save(state)
    return str(state)


def test_a_tokenizer_that_a_state_names_is_reported(
    model: str, bad_places: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--prompt", "a", "--max-tokens", "1", "--tokenizer", bad_places["json"]]
    assert run(["generate", model, *options, "--save-state", bad_places["state"]]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1
    go_on = ["generate", model, "--load-state", bad_places["state"], "--max-tokens", "1"]
    assert run(go_on) == 0
    said, _ = capsys.readouterr().err.splitlines()
    assert said == f"pom-export: the state names the tokenizer {bad_places['json']}"
    assert run([*go_on, "--tokenizer", bad_places["json"]]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("kind", ["/dev/zero", "fifo", "sparse", "none", "folder", "gpt2", "a\nb"])
def test_a_state_that_names_no_tokenizer_is_one_line(
    kind: str, model: str, bad_places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / kind)
    elif kind == "folder":
        (tmp_path / kind).mkdir()
    elif kind == "sparse":
        with (tmp_path / kind).open("wb") as file:
            file.truncate(3 * 2**30)
    name = kind if kind == "gpt2" else str(tmp_path / kind)
    state = rename_tokenizer(Path(bad_places["state"]), name)
    assert run(["generate", model, "--load-state", state]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert "okenizer" in line


def test_an_engine_needs_a_gpu(
    model: str, bad_places: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pom_export.engine.streaming.gpu_present", lambda: False)
    assert run(["generate", model, "--prompt", "a", "--engine", bad_places["text"]]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "pom-export: error: there is no CUDA device here to run text on. "
        "Leave the engine out: ONNX Runtime runs the model"
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_present(), reason="no CUDA device is here")
def test_an_engine_writes_what_onnx_runtime_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "m.onnx")
    pom_export.export(hybrid(vocabulary=256), model, stateful=True)
    pom_export.build_engine(model, f"{model}.engine")
    options = [model, "--prompt", "Once upon", "--temperature", "0", "--max-tokens", "30"]
    assert written(capsys, *options, "--engine", f"{model}.engine") == written(capsys, *options)


def test_the_model_s_positions_end_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(running_sum_model(tmp_path / "m.onnx", tokens=12))
    assert run(["generate", model, *OPTIONS]) == 0
    printed = capsys.readouterr()
    assert "4 tokens" in printed.err
    assert "the model has no more positions" in printed.err


def test_gpt2_s_tokens_are_pieces_of_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding: Any = SimpleNamespace(
        n_vocab=50257,
        encode_ordinary=lambda text: list(text.encode()),
        decode_single_token_bytes=lambda token: f"<{token}>".encode(),
    )
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=lambda _: encoding))
    model = str(running_sum_model(tmp_path / "m.onnx", vocabulary=50304))
    assert written(capsys, model, "--prompt", "ab", "--max-tokens", "3").count("<") == 3
