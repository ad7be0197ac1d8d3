"""What happens to every request: its host and key are checked, it is counted, and refused while the server ends."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pom_export.serving.errors import Failure, RequestError, failure_of
from pom_export.serving.service import Service

# Paths that tell nothing that a key protects, and that load balancers and browsers ask for without one.
_OPEN: Final = ("/", "/health", "/ready")
# Paths that are answered while the server ends.
_ALWAYS: Final = ("/health", "/ready", "/metrics")
_OTHER: Final = "other"
_BEARER: Final = b"bearer"
# What counts as the status of a request whose client left before its answer.
_LEFT: Final = 499


class Guard:
    """Checks, counts and, in the end, refuses requests.

    Args:
        app: the application.
        service: what it serves.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: D102 (ASGI)
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = _Started(send)
        counted = scope["path"] not in _ALWAYS
        self._service.requests += counted
        try:
            await self._answer(scope, receive, response)
        finally:
            self._service.requests -= counted
            self._service.metrics.requests[_route(scope), response.status or _LEFT] += 1

    async def _answer(self, scope: Scope, receive: Receive, response: _Started) -> None:
        try:
            self._check(scope)
            await self._app(scope, receive, response)
        except ClientDisconnect:
            return
        except Exception as error:
            failure = failure_of(error)
            if response.status:
                raise  # the connection is closed, so that nobody takes a part of an answer for all of it
            await _send(failure, response)

    def _check(self, scope: Scope) -> None:
        """Raise RequestError for a request to another host or without the key, or while the server ends."""
        hosts = self._service.settings.hosts
        if hosts is not None and (name := _host(scope)) not in hosts:
            raise RequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server is not {name!r}",
                "Ask it by its own address, or allow that name when it is started",
            )
        key = self._service.settings.api_key
        if key is not None and scope["path"] not in _OPEN and not _carries(scope, key.encode()):
            raise RequestError(
                HTTPStatus.UNAUTHORIZED, "the key is missing or wrong", "Send the header Authorization: Bearer KEY"
            )
        if self._service.draining and scope["path"] not in _ALWAYS:
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", "Ask another")


class _Started:
    """Sends a response, and remembers its status; 0: it has not begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def _send(failure: Failure, send: Send) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(failure.body)), **failure.headers}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(failure.status), "headers": raw})
    await send({"type": "http.response.body", "body": failure.body})


def _carries(scope: Scope, key: bytes) -> bool:
    """Return whether a request carries a key, in a time that does not depend on where another one differs."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    return hmac.compare_digest(token.strip(), key) and scheme.lower() == _BEARER


def _host(scope: Scope) -> str:
    """Return the name by which a request calls the server, without the port."""
    given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1").lower()
    name, colon, port = given.rpartition(":")
    name = name if colon and port.isdecimal() else given
    return name.removeprefix("[").removesuffix("]")


def _route(scope: Scope) -> str:
    """Return a request's path, with names of parameters in place of their values; "other" for unknown paths."""
    return getattr(scope.get("route"), "path", _OTHER)
