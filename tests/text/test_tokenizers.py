"""Tokenizers: which one is used, and how they encode text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pom_export.errors import InputError, MissingDependencyError
from pom_export.text.tokenizers import ByteTokenizer, choose_tokenizer

TEXT = "Grüße, 😀 world"


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of single bytes that adds a token before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_the_bytes_of_a_token() -> None:
    assert [ByteTokenizer().bytes_of(token) for token in (65, 195)] == [b"A", b"\xc3"]


def test_a_tokenizer_file(tokenizer_file: Path) -> None:
    tokenizer = choose_tokenizer(str(tokenizer_file), 300)
    assert tokenizer.size == 257
    assert tokenizer.name == str(tokenizer_file)
    ids = tokenizer.encode(TEXT)
    assert ids[0] == 256
    assert tokenizer.encode(TEXT, begins=False) == ids[1:]
    stream = tokenizer.stream(ids[:4])
    pieces = [stream.push(token) for token in ids[4:]]
    assert TEXT.endswith("".join(pieces))
    assert "😀" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    assert [tokenizer.bytes_of(token) for token in ids[:6]] == [b"<s>", b"G", b"r", None, None, None]
    with pytest.raises(InputError, match="the prompt is not UTF-8"):
        tokenizer.encode("\udcff")


def test_bytes_go_with_a_vocabulary_of_256() -> None:
    tokenizer = choose_tokenizer("auto", 256)
    assert isinstance(tokenizer, ByteTokenizer)
    ids = tokenizer.encode(TEXT)
    assert bytes(ids).decode() == TEXT
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == TEXT


class _Encoding:
    n_vocab = 50257

    def encode_ordinary(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode_single_token_bytes(self, token: int) -> bytes:
        return bytes([token])


@pytest.mark.parametrize("vocabulary", [50257, 50304])
def test_gpt2_goes_with_its_vocabulary(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def get_encoding(name: str) -> _Encoding:
        asked.append(name)
        return _Encoding()

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=get_encoding))
    tokenizer = choose_tokenizer("auto", vocabulary)
    assert asked == ["gpt2"]
    assert (tokenizer.name, tokenizer.size) == ("gpt2", 50257)
    assert tokenizer.encode("abc") == [97, 98, 99]
    assert tokenizer.stream().push(97) == "a"


def test_a_vocabulary_that_cannot_be_fetched_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_encoding(_: str) -> None:
        raise OSError("no route to host\nand more")

    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(get_encoding=get_encoding))
    with pytest.raises(InputError, match=r"cannot fetch GPT-2's vocabulary: no route to host. Run it once") as caught:
        choose_tokenizer("gpt2", 50257)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("module", "name"), [("tiktoken", "gpt2"), ("tokenizers", "tokenizer.json")])
def test_a_missing_library_is_named_as_pip_takes_it(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{module} is not installed.*pip install '{module}>=\d"):
        choose_tokenizer(name, 50257)


def test_bad_choices_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"no": "tokenizer"}')
    for name, message in (
        ("auto", r"no tokenizer is known for 1000 tokens. Name a tokenizer.json"),
        (str(tmp_path / "t.json"), "is no tokenizer: "),
        (str(tmp_path), "is a folder"),
        ("none.json", "tokenizer none.json does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            choose_tokenizer(name, 1000)


def test_a_tokenizer_whose_vocabulary_lacks_its_own_token_for_unknown_ones(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(
        '{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}, "added_tokens": []}'
    )
    with pytest.raises(InputError, match="cannot encode the text"):
        choose_tokenizer(str(file), 1).encode("b")


def test_a_tokenizer_whose_expression_takes_too_long_for_its_library(tmp_path: Path) -> None:
    """The library's Rust code panics, which Python sees as an exception that is not an Exception."""
    file = tmp_path / "tokenizer.json"
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    file.write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": [], "pre_tokenizer": split}))
    with pytest.raises(InputError, match="cannot encode the text"):
        choose_tokenizer(str(file), 1).encode("a" * 60 + "b")
