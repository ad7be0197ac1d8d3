"""The tokenizer's files in a package for onnxruntime-genai."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pom_export.errors import InputError
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.genai.layout import Layout
from pom_export.text.tokenizer_files import read_tokenizer_files
from pom_export.text.tokenizers import AUTO, BYTES, GPT2, ByteTokenizer, FileTokenizer, Tokenizer

_FILE: Final = "tokenizer.json"
_CONFIG: Final = "tokenizer_config.json"
# What else a tokenizer's folder may have that onnxruntime-genai reads.
_BESIDE: Final = ("special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
# Texts whose ids are compared where the package is used.
_SAMPLES: Final = (
    "The with statement",
    "Zażółć gęślą jaźń \u2014 日本語, \U0001f600\n\n\tand: don't  stop",
)


@dataclass(frozen=True)
class Words:
    """What a package's tokenizer is like.

    Attributes:
        files: whether the package has one.
        begin: the id of the token that begins texts; None: there is none.
        ends: the ids of those that end texts.
        samples: texts with their ids.
        note: what its user should know; it may be empty.
    """

    files: bool
    begin: int | None = None
    ends: tuple[int, ...] = ()
    samples: tuple[tuple[str, list[int]], ...] = ()
    note: str = ""


def choose(name: str | None, layout: Layout) -> Tokenizer | None:
    """Return a package's tokenizer; None: it has none.

    Args:
        name: "bytes", the path of a tokenizer.json, or "auto" (default): bytes for 256 tokens, otherwise none.
        layout: the model.

    Raises:
        InputError: there is no such file, it lacks the file beside it, or it is another model's.
        MissingDependencyError: tokenizers is not installed.
    """
    if name == GPT2:
        raise InputError("onnxruntime-genai needs the files of GPT-2's tokenizer", "Give the path: `tokenizer=PATH`")
    fits = layout.vocabulary == ByteTokenizer.size
    if name in (None, AUTO):
        return ByteTokenizer() if fits else None
    tokenizer: Tokenizer = ByteTokenizer() if name == BYTES else FileTokenizer(str(name))
    if tokenizer.size > layout.vocabulary:
        raise InputError(
            f"the tokenizer has {tokenizer.size} tokens, but {layout.model.name} has {layout.vocabulary}",
            "Choose the tokenizer that the model was trained with: `tokenizer`",
        )
    if name != BYTES and not Path(tokenizer.name).with_name(_CONFIG).is_file():
        raise InputError(f"{_CONFIG} is not beside {tokenizer.name}, and onnxruntime-genai needs both", "Put it there")
    return tokenizer


def write_tokenizer(folder: PackageFolder, tokenizer: Tokenizer | None) -> Words:
    """Write a tokenizer's files."""
    if tokenizer is None:
        return Words(
            files=False, note="no tokenizer is in the package, which takes and gives ids: `tokenizer=PATH` adds one"
        )
    samples = tuple((text, tokenizer.encode(text, begins=False)) for text in _SAMPLES)
    if isinstance(tokenizer, ByteTokenizer):
        folder.write(_FILE, json.dumps(_byte_tokenizer(), indent=1) + "\n")
        config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": False, "add_prefix_space": False}
        folder.write(_CONFIG, json.dumps(config, indent=1) + "\n")
        return Words(files=True, samples=samples)
    assert isinstance(tokenizer, FileTokenizer)
    source = Path(tokenizer.name)
    folder.copy(source, _FILE)
    for beside in (_CONFIG, *_BESIDE):
        if (file := source.with_name(beside)).is_file():
            folder.copy(file, beside)
    found = read_tokenizer_files(tokenizer)
    begin = tokenizer.id_of(found.begin) if found.begin else None
    return Words(files=True, begin=begin, ends=tuple(sorted(found.ends)), samples=samples)


def _byte_tokenizer() -> Mapping[str, Any]:
    """Return a tokenizer.json whose ids are the bytes of UTF-8.

    It is GPT-2's kind, which writes each byte as a character, without any pairs that are merged.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(ByteTokenizer.size) if byte not in plain]
    characters = {byte: chr(byte) for byte in plain} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    steps = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": steps,
        "post_processor": None,
        "decoder": steps,
        "model": {"type": "BPE", "vocab": {characters[byte]: byte for byte in sorted(characters)}, "merges": []},
    }
