"""Tokens and their logprobs, in the forms of the two kinds of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pom_export.text.batch.pieces import Token
from pom_export.text.tokenizers import Tokenizer

Json = dict[str, Any]
# What stands for the logprob of a token that cannot come, as JSON has no infinity; OpenAI's says the same.
_LEAST: Final = -9999.0


def of_completion(tokens: Sequence[Token], tokenizer: Tokenizer, offset: int, *, likeliest: bool) -> Json:
    """Return the logprobs of a completion's tokens.

    Args:
        tokens: the tokens.
        tokenizer: theirs.
        offset: number of characters that are shown before those that the tokens' offsets count from; if some of these
            are not shown themselves, it is negative.
        likeliest: whether to tell the likeliest tokens.
    """
    top = [
        {_named(token, tokenizer): _finite(logprob) for token, logprob in each.likeliest} if each.likeliest else None
        for each in tokens
    ]
    return {
        "tokens": [_named(each.id, tokenizer) for each in tokens],
        "token_logprobs": [_finite(each.logprob) for each in tokens],
        "top_logprobs": top if likeliest else None,
        "text_offset": [max(0, offset + each.offset) for each in tokens],
    }


def of_chat(tokens: Sequence[Token], tokenizer: Tokenizer) -> Json:
    """Return the logprobs of a chat answer's tokens."""
    content = [
        {
            **_told(each.id, each.logprob, tokenizer),
            "top_logprobs": [_told(token, logprob, tokenizer) for token, logprob in each.likeliest],
        }
        for each in tokens
    ]
    return {"content": content, "refusal": None}


def _told(token: int, logprob: float | None, tokenizer: Tokenizer) -> Json:
    data = tokenizer.bytes_of(token)
    return {
        "token": _named(token, tokenizer),
        "logprob": _finite(logprob),
        "bytes": None if data is None else list(data),
    }


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)


def _named(token: int, tokenizer: Tokenizer) -> str:
    """Return a token's text; of one that is none by itself, its bytes, or else its id, so that all names differ."""
    data = tokenizer.bytes_of(token)
    if data is None:
        return f"token_id:{token}"
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
