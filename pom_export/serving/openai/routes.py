"""The routes of OpenAI's protocol, and its server-sent events."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pom_export.serving.errors import failure_of
from pom_export.serving.openai import chat, completions
from pom_export.serving.openai.answers import Answer
from pom_export.serving.openai.protocol import ChatRequest, CompletionRequest, TextRequest, parsed
from pom_export.serving.requests import read_object, while_connected
from pom_export.serving.service import Service
from pom_export.serving.steps import SESSION_HEADER

_DONE: Final = b"data: [DONE]\n\n"
_Request = TypeVar("_Request", bound=TextRequest)
Begin = Callable[[Service, _Request, AsyncExitStack], Awaitable[Answer]]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter()

    @routes.post("/v1/completions")
    async def complete(request: Request) -> Response:
        return await _answered(service, request, CompletionRequest, completions.begin)

    @routes.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        return await _answered(service, request, ChatRequest, chat.begin)

    return routes


async def _answered(service: Service, request: Request, kind: type[_Request], begin: Begin[_Request]) -> Response:
    value = await read_object(request, service.settings.most_body)
    wanted = parsed(kind, value, request.headers.get(SESSION_HEADER))

    async def begun() -> Answer:
        async with AsyncExitStack() as stack:
            answer = await begin(service, wanted, stack)
            answer.stack = stack.pop_all()
            return answer

    async def whole() -> JSONResponse:
        return JSONResponse(await (await begun()).whole())

    if not wanted.stream:
        return await while_connected(request, whole())
    # What cannot be begun is refused with a status of its own.
    return Events(await while_connected(request, begun()))


class Events(Response):
    """An answer as server-sent events. A client that leaves ends it.

    Args:
        answer: the answer.
    """

    media_type = "text/event-stream"

    def __init__(self, answer: Answer) -> None:
        # A proxy should neither keep the events nor collect them.
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events (ASGI)."""
        async with self._answer.stack:
            await while_connected(Request(scope, receive), self._send(send))

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for part in self._answer.parts():
                await _event(send, part)
            await send({"type": "http.response.body", "body": _DONE})
        except Exception as error:  # noqa: BLE001 (told in the stream, which has begun)
            await _event(send, failure_of(error).content)
            await send({"type": "http.response.body", "body": b""})


async def _event(send: Send, content: dict[str, Any]) -> None:
    data = f"data: {json.dumps(content, ensure_ascii=False)}\n\n".encode()
    await send({"type": "http.response.body", "body": data, "more_body": True})
