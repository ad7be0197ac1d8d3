"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final

import numpy as np
import numpy.typing as npt

from pom_export.runtime.streaming.state import State
from pom_export.serving.errors import RequestError
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
from pom_export.serving.openai.protocol import ChatRequest
from pom_export.serving.openai.template import ChatTemplate
from pom_export.serving.service import Service
from pom_export.serving.sessions import Session
from pom_export.serving.texts import End, TextJob
from pom_export.text.batch.pieces import Piece, Token
from pom_export.text.tokenizers import Tokenizer

# Where a session's state has its conversation.
_CHAT: Final = "chat"
_ASSISTANT: Final = "assistant"
Said = dict[str, str]


class _Chat:
    """The form of answers in a chat."""

    name = "chat.completion"
    piece_name = "chat.completion.chunk"
    prefix = "chatcmpl"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer

    def before(self, place: int) -> Json | None:
        return {"index": place, "delta": {"role": _ASSISTANT, "content": ""}, "logprobs": None}

    def choice(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:  # noqa: ARG002
        message = {"role": _ASSISTANT, "content": _text(pieces), "refusal": None}
        return {"index": place, "message": message, "logprobs": self._logprobs(pieces)}

    def delta(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:  # noqa: ARG002
        shown = _text(pieces)
        return {"index": place, "delta": {"content": shown} if shown else {}, "logprobs": self._logprobs(pieces)}

    def _logprobs(self, pieces: Sequence[Piece]) -> Json | None:
        if not self._request.logprobs:
            return None
        return logprobs.of_chat([token for piece in pieces for token in piece.tokens], self._tokenizer)


@dataclass(frozen=True)
class Conversation:
    """What has been said in a session, and what its state has read of it.

    Attributes:
        messages: the messages, the last one an answer.
        count: number of tokens that the state has read, or is yet to.
        key: their hash.
    """

    messages: Sequence[Said]
    count: int
    key: str

    def added_to(self, state: State) -> State:
        """Return a state with the conversation added."""
        content = np.frombuffer(json.dumps(self.messages).encode(), np.uint8)
        notes = {**state.notes, _CHAT: {"count": self.count, "key": self.key}}
        return replace(state, notes=notes, extras={**state.extras, _CHAT: content})

    @classmethod
    def of(cls, state: State) -> Conversation | None:
        """Return the conversation in a state; None if it has none."""
        if _CHAT not in state.notes:
            return None
        return cls(json.loads(state.extras[_CHAT].tobytes()), **state.notes[_CHAT])


async def begin(service: Service, request: ChatRequest, stack: AsyncExitStack) -> Answer:
    """Begin the answers that a request asks for.

    In a session, the messages follow those of before. What the state has read is not read again if the whole
    conversation, as the template renders it, begins with it: then the answer is the one to the whole conversation
    without a session. Otherwise the conversation is read anew.

    Args:
        service: what answers.
        request: what is asked.
        stack: gets what the request holds.

    Raises:
        RequestError: it asks for what the server does not have.
        InputError: its messages do not fit the template or the model.
    """
    tokenizer, template = check_tokenizer(service), _template(service)
    check_request(service, request)
    most = _most(service, request)
    settings = settings_of(request)
    session = await stack.enter_async_context(service.sessions.use(request.session))
    check_text(session)
    before = _before(session)
    messages = _continued(before, [message.rendered() for message in request.messages])
    ids = await asyncio.to_thread(lambda: np.array(tokenizer.encode(template.render(messages), begins=False), np.int64))
    likeliest = (request.top_logprobs or 0) if request.logprobs else None
    job = TextJob(ids, settings, most, likeliest, keep=session.name is not None)
    if before is not None and before.count < len(ids) and _key(ids[: before.count]) == before.key:
        job = replace(job, ids=ids[before.count :], state=session.state)
    answer = await begun(service, request, _Chat(request, tokenizer), [job], stack)

    async def keep(end: End, shown: str) -> None:
        assert end.state is not None
        said = [*messages, {"role": _ASSISTANT, "content": shown}]
        read = np.append(ids, np.array(end.kept, np.int64))
        await session.keep(Conversation(said, len(read), _key(read)).added_to(end.state))

    if session.name is not None:
        answer.keep = keep
    return answer


def _most(service: Service, request: ChatRequest) -> int:
    """Return the most tokens of the answer, having checked what depends on several fields."""
    if request.top_logprobs is not None and not request.logprobs:
        raise refused("top_logprobs", "top_logprobs are told with logprobs", "Set logprobs, or leave them out")
    if request.max_completion_tokens is None:
        return most_answer(service, "max_tokens", request.max_tokens)
    if request.max_tokens is not None:
        raise refused("max_tokens", "max_tokens and max_completion_tokens are both given", "Give one of them")
    return most_answer(service, "max_completion_tokens", request.max_completion_tokens)


def _template(service: Service) -> ChatTemplate:
    if service.chat is None:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"{service.name} has no chat template",
            "Start the server with one, or send a prompt to /v1/completions",
        )
    return service.chat


def _before(session: Session) -> Conversation | None:
    if session.state is None:
        return None
    before = Conversation.of(session.state)
    if before is None:
        raise RequestError(
            HTTPStatus.CONFLICT,
            f"session {session.name} is no chat: its messages are unknown",
            "Take another session",
            param="session",
        )
    return before


def _continued(before: Conversation | None, messages: list[Said]) -> list[Said]:
    """Return all messages of a conversation, given what is new, or all of it.

    Raises:
        RequestError: the messages have answers, but are not those of the conversation.
    """
    if before is None:
        return messages
    said = list(before.messages)
    if messages[: len(said)] == said and len(messages) > len(said):
        return messages
    if any(message["role"] == _ASSISTANT for message in messages):
        raise RequestError(
            HTTPStatus.CONFLICT,
            "the messages have answers that are not the session's",
            "Send only what is new, or the session's own messages before it, or take another session",
            param="messages",
            code="session_differs",
        )
    return [*said, *messages]


def _key(ids: npt.NDArray[np.int64]) -> str:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).hexdigest()


def _text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)
