"""Tokens and logprobs as the protocol tells them."""

from __future__ import annotations

import json
import math

from pom_export.serving.openai.logprobs import of_chat, of_completion
from pom_export.text.batch.pieces import Token
from pom_export.text.tokenizers import ByteTokenizer

TOKENS = [Token(65, 0, None), Token(195, 1, -0.5, ((195, -0.5), (66, -math.inf))), Token(169, 1, -math.inf)]


def test_tokens_of_a_completion() -> None:
    told = of_completion(TOKENS, ByteTokenizer(), 10, likeliest=True)
    assert told == {
        "tokens": ["A", "bytes:\\xc3", "bytes:\\xa9"],
        "token_logprobs": [None, -0.5, -9999.0],
        "top_logprobs": [None, {"bytes:\\xc3": -0.5, "B": -9999.0}, None],
        "text_offset": [10, 11, 11],
    }
    json.dumps(told, allow_nan=False)
    assert of_completion(TOKENS, ByteTokenizer(), -1, likeliest=False)["text_offset"] == [0, 0, 0]
    assert of_completion(TOKENS, ByteTokenizer(), 0, likeliest=False)["top_logprobs"] is None


def test_tokens_of_a_chat() -> None:
    told = of_chat(TOKENS[1:], ByteTokenizer())["content"]
    assert told[0] == {
        "token": "bytes:\\xc3",
        "logprob": -0.5,
        "bytes": [195],
        "top_logprobs": [
            {"token": "bytes:\\xc3", "logprob": -0.5, "bytes": [195]},
            {"token": "B", "logprob": -9999.0, "bytes": [66]},
        ],
    }
    assert told[1]["logprob"] == -9999.0
