"""Begin the texts of a request, and tell them in the shape of the protocol: at once, or as they come."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any, Final, Protocol

from pom_export.errors import InputError
from pom_export.serving.errors import RequestError
from pom_export.serving.openai.protocol import TextRequest
from pom_export.serving.service import Service
from pom_export.serving.sessions import Session
from pom_export.serving.texts import End, News, TextJob
from pom_export.text.batch.pieces import Piece, Token
from pom_export.text.generation import STOPPED
from pom_export.text.notes import Settings, read_notes
from pom_export.text.tokenizers import Tokenizer

Json = dict[str, Any]
Keep = Callable[[End, str], Awaitable[None]]
# What a text ended by that was not its own end.
_LENGTH: Final = "length"


class Shape(Protocol):
    """The form of a kind of answers.

    Attributes:
        name: what an answer is called in OpenAI's protocol.
        piece_name: what a piece of one is called.
        prefix: what its id begins with.
    """

    name: str
    piece_name: str
    prefix: str

    def before(self, place: int) -> Json | None:
        """Return what comes before the first piece of a choice; None if nothing does."""

    def choice(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:
        """Return a whole choice, but for its reason to end; with the prompt's tokens if they have logprobs."""

    def delta(self, place: int, pieces: Sequence[Piece], prompt: Sequence[Token]) -> Json:
        """Return pieces of a choice, which may be none; with the first ones the prompt's tokens."""


class _Choice:
    """What has come of one text."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.prompt: Sequence[Token] = ()
        self.end: End | None = None

    def add(self, news: News) -> None:
        self.pieces += news.pieces
        self.prompt = self.prompt or news.prompt
        self.end = news.end


class Answer:
    """What a request gets.

    Args:
        service: what answers.
        request: what was asked.
        shape: the answer's form.
        jobs: the prompts, and what is wanted of the texts that continue them.
        news: what comes of the texts.
        stack: see below.

    Attributes:
        stack: closes what the request holds: its texts, places and session.
        keep: keeps the session, given the text's end and what was shown of it.
    """

    def __init__(
        self,
        service: Service,
        request: TextRequest,
        shape: Shape,
        jobs: Sequence[TextJob],
        news: AsyncIterator[News],
        stack: AsyncExitStack,
    ) -> None:
        self.stack = stack
        self.keep: Keep | None = None
        self._request = request
        self._shape = shape
        self._jobs = jobs
        self._news = news
        self._choices = [_Choice() for job in jobs for _ in job.settings]
        self._head: Json = {
            "id": f"{shape.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": service.name,
            # Extensions of the protocol.
            "seed": jobs[0].settings[0].sampling.seed,
            **({} if request.session is None else {"session": request.session}),
        }

    async def whole(self) -> Json:
        """Return the answer, once all texts have ended."""
        async with self.stack:
            async for _ in self._arriving():
                pass
            await self._kept()
            choices = [
                {**self._shape.choice(place, each.pieces, each.prompt), "finish_reason": _reason(each.end)}
                for place, each in enumerate(self._choices)
            ]
            return {**self._head, "object": self._shape.name, "choices": choices, "usage": self._usage()}

    async def parts(self) -> AsyncIterator[Json]:
        """Yield the answer as it comes; what the request held is free before the last part."""
        head = {**self._head, "object": self._shape.piece_name}
        if self._tells_usage:
            head["usage"] = None
        async with self.stack:
            for place, _ in enumerate(self._choices):
                if (first := self._shape.before(place)) is not None:
                    yield {**head, "choices": [{**first, "finish_reason": None}]}
            last = head
            async for news in self._arriving():
                delta = self._shape.delta(news.place, news.pieces, news.prompt)
                last = {**head, "choices": [{**delta, "finish_reason": _reason(news.end)}]}
                if any(each.end is None for each in self._choices):
                    yield last
            await self._kept()
        # Whoever has seen the end may go on with the session at once.
        yield last
        if self._tells_usage:
            yield {**head, "choices": [], "usage": self._usage()}

    @property
    def _tells_usage(self) -> bool:
        options = self._request.stream_options
        return options is not None and options.include_usage

    async def _arriving(self) -> AsyncIterator[News]:
        try:
            async for news in self._news:
                self._choices[news.place].add(news)
                yield news
        except InputError as error:
            if type(error) is not InputError:
                raise
            # It is the model that failed, and not the client.
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            raise RequestError(status, error.what, error.hint, code="text_failed") from error

    async def _kept(self) -> None:
        if self.keep is not None:
            end = self._choices[0].end
            assert end is not None
            await self.keep(end, "".join(piece.text for piece in self._choices[0].pieces))

    def _usage(self) -> Json:
        """Return the numbers of tokens. Of the prompt's, all but the cached ones were read for this request."""
        ends = [each.end for each in self._choices if each.end is not None]
        prompt = sum(len(job.ids) for job in self._jobs)
        cached = sum(end.spared for end in ends)
        for state in [job.state for job in self._jobs if job.state is not None]:
            cached += int(state.lengths[0])
            prompt += int(state.lengths[0]) + len(read_notes(state).pending)
        chosen = sum(end.tokens for end in ends)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": chosen,
            "total_tokens": prompt + chosen,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


def _reason(end: End | None) -> str | None:
    if end is None:
        return None
    return STOPPED if end.reason == STOPPED else _LENGTH


async def begun(
    service: Service, request: TextRequest, shape: Shape, jobs: Sequence[TextJob], stack: AsyncExitStack
) -> Answer:
    """Begin a request's texts, once there is place for them.

    Args:
        service: what answers.
        request: what is asked.
        shape: the form of the answer.
        jobs: the prompts, and what is wanted of the texts that continue them.
        stack: gets what the request holds.

    Raises:
        RequestError: they are more than the server allows, or it has no place.
        InputError: they do not fit the model.
    """
    tokens, most = sum(len(job.ids) for job in jobs), service.settings.most_tokens
    if tokens > most:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{tokens} tokens are more than the {most} of a request",
            "Send them in pieces, in a session",
        )
    news = await stack.enter_async_context(service.model.continued(jobs, session=request.session))
    return Answer(service, request, shape, jobs, news, stack)


def settings_of(request: TextRequest) -> list[Settings]:
    """Return how each answer to a prompt is continued.

    Raises:
        InputError: a value is out of range.
    """
    sampling = request.sampling()
    return [Settings(sampling.variant(number), "", tuple(request.stop)) for number in range(request.n)]


def check_text(session: Session) -> None:
    """Raise RequestError for a session whose state no text can follow."""
    if session.state is None:
        return
    try:
        read_notes(session.state)
    except InputError as error:
        raise RequestError(
            HTTPStatus.CONFLICT,
            f"session {session.name} goes on with numbers, not with a text",
            "Take another session",
            param="session",
        ) from error


def check_tokenizer(service: Service) -> Tokenizer:
    """Return a service's tokenizer.

    Raises:
        RequestError: its model has none.
    """
    if service.tokenizer is None:
        raise RequestError(
            HTTPStatus.BAD_REQUEST,
            f"{service.name} has no tokenizer",
            "Send numbers to /v1/steps, or start the server with the model's tokenizer",
        )
    return service.tokenizer


def check_request(service: Service, request: TextRequest) -> None:
    """Raise RequestError for another model, or what does not go together."""
    if request.model not in (None, service.name):
        raise RequestError(
            HTTPStatus.NOT_FOUND,
            f"there is no model {request.model!r}",
            f"This server has {service.name!r}",
            param="model",
            code="model_not_found",
        )
    if request.stream_options is not None and not request.stream:
        raise refused("stream_options", "stream_options are for answers that stream", "Set stream, or leave them out")
    if request.session is not None and request.n > 1:
        raise refused("n", f"n is {request.n}, but a session has one answer to go on from", "Ask for 1")


def most_answer(service: Service, name: str, wanted: int | None) -> int:
    """Return the most tokens of an answer.

    Args:
        service: what answers.
        name: the field that asks for it.
        wanted: the number asked for; None: as many as there may be.

    Raises:
        RequestError: that is more than the server allows.
    """
    most = service.settings.most_answer
    if wanted is not None and wanted > most:
        raise refused(name, f"{name} is {wanted}, more than the server's {most}", "Ask for fewer")
    return most if wanted is None else wanted


def refused(param: str, what: str, hint: str) -> RequestError:
    """Return the error for a field that cannot be answered."""
    return RequestError(HTTPStatus.BAD_REQUEST, what, hint, param=param)
