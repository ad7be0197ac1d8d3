"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import numpy.typing as npt

from pom_export.serving.openai import logprobs
from pom_export.serving.openai.answers import (
    Answer,
    Json,
    begun,
    check_request,
    check_text,
    check_tokenizer,
    most_answer,
    refused,
    settings_of,
)
from pom_export.serving.openai.protocol import CompletionRequest
from pom_export.serving.service import Service
from pom_export.serving.sessions import Session
from pom_export.serving.texts import End, TextJob
from pom_export.text.batch.pieces import Piece, Token
from pom_export.text.tokenizers import Tokenizer


class _Completion:
    """The form of completions."""

    name = "text_completion"
    piece_name = "text_completion"
    prefix = "cmpl"

    def __init__(self, request: CompletionRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        # Choices whose prompt has been told.
        self._echoed: set[int] = set()

    def before(self, place: int) -> Json | None:  # noqa: ARG002
        return None

    def choice(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:
        return self.delta(place, pieces, prompt)

    def delta(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:
        tokens = [token for piece in pieces for token in piece.tokens]
        shown = "".join(piece.text for piece in pieces)
        likeliest = bool(self._request.logprobs)
        echoed = ""
        if self._request.echo:
            echoed = _text(self._request.prompt[place // self._request.n], self._tokenizer)
        told = logprobs.of_completion(tokens, self._tokenizer, len(echoed), likeliest=likeliest)
        if self._request.echo and place not in self._echoed:
            self._echoed.add(place)
            shown = echoed + shown
            # What the tokenizer puts before a text is not shown.
            added = len(_text([token.id for token in prompt], self._tokenizer)) - len(echoed)
            before = logprobs.of_completion(prompt, self._tokenizer, -added, likeliest=likeliest)
            told = {name: None if part is None else before[name] + part for name, part in told.items()}
        return {"index": place, "text": shown, "logprobs": None if self._request.logprobs is None else told}


async def begin(service: Service, request: CompletionRequest, stack: AsyncExitStack) -> Answer:
    """Begin the texts that a request asks for.

    Args:
        service: what answers.
        request: what is asked.
        stack: gets what the request holds.

    Raises:
        RequestError: it asks for what the server does not have.
        InputError: its prompts do not fit the model.
    """
    tokenizer = check_tokenizer(service)
    check_request(service, request)
    scored = request.echo and request.logprobs is not None
    if request.session is not None and (len(request.prompt) != 1 or scored):
        raise refused("session", "a session goes on with one prompt, without its logprobs", "Leave the session out")
    most = most_answer(service, "max_tokens", request.max_tokens)
    settings = settings_of(request)
    session = await stack.enter_async_context(service.sessions.use(request.session))
    check_text(session)
    jobs = []
    for prompt in request.prompt:
        ids = await asyncio.to_thread(_ids, prompt, tokenizer, begins=session.state is None)
        keep = session.name is not None
        jobs.append(TextJob(ids, settings, most, request.logprobs, scored, session.state, keep=keep))
    answer = await begun(service, request, _Completion(request, tokenizer), jobs, stack)
    if session.name is not None:
        answer.keep = lambda end, _: _keep(session, end)
    return answer


async def _keep(session: Session, end: End) -> None:
    assert end.state is not None
    await session.keep(end.state)


def _ids(prompt: str | Sequence[int], tokenizer: Tokenizer, *, begins: bool) -> npt.NDArray[Any]:
    return np.array(tokenizer.encode(prompt, begins=begins) if isinstance(prompt, str) else prompt)


def _text(prompt: str | Sequence[int], tokenizer: Tokenizer) -> str:
    if isinstance(prompt, str):
        return prompt
    stream = tokenizer.stream()
    return "".join(stream.push(token) for token in prompt) + stream.finish()
