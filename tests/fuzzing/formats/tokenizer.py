"""Tokenizers (tokenizer.json), which another library parses for `generate`."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzzing.cases import Case, Place
from tests.fuzzing.mutations import jsons
from tests.fuzzing.seeds import Seeds

_WORDS = {"[UNK]": 0, **{chr(97 + i): i + 1 for i in range(26)}, "ab": 27, " ": 28}
_ADDED = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [{"id": 29, "content": "<s>", **_ADDED}],
    "normalizer": {"type": "Replace", "pattern": {"Regex": "x+"}, "content": "x"},
    "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]"}, "behavior": "Isolated", "invert": False},
    "post_processor": None,
    "decoder": {"type": "ByteFallback"},
    "model": {"type": "BPE", "unk_token": "[UNK]", "vocab": _WORDS, "merges": [["a", "b"]]},
}
# Regular expressions on which a backtracking search takes longer than anyone waits.
_EXPRESSIONS = ("(a+)+$", "(a|a)*b", "(?=(a+))*", "a{1000000}", "(" * 5000, "\\", "(?<!a{1,100})b", "[", "(.*)*\\1")


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `generate --tokenizer` of a spoilt tokenizer."""
    file = place.inputs / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(json.dumps(_TOKENIZER))
    if random.random() < 0.2:
        expression = random.choice(_EXPRESSIONS)
        tokenizer[random.choice(("normalizer", "pre_tokenizer"))]["pattern"]["Regex"] = expression
        content, what = json.dumps(tokenizer).encode(), f"expression {expression[:30]!r}"
    else:
        content, what = jsons.spoil(random, tokenizer)
    file.write_bytes(content)
    prompt = ("--prompt", "a" * 40 + "!", "--max-tokens", "2", "--seed", "1", "--json")
    return Case(("generate", str(seeds["stream.onnx"]), "--tokenizer", str(file), *prompt), what)
