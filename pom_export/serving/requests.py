"""Read requests within limits, and notice clients that leave."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from pom_export.errors import kind_of, reason_of
from pom_export.json_text import parse_json
from pom_export.serving.errors import RequestError

_Result = TypeVar("_Result")

# A larger body is parsed in another thread, while the event loop goes on.
_LONG: Final = 2**16
_JSON: Final = "application/json"
# One half of a character, which makes one with another.
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request, most_bytes: int) -> dict[str, Any]:
    """Return a request's JSON object. Its size is checked while it is read.

    Args:
        request: the request.
        most_bytes: the most bytes that it may have.

    Raises:
        RequestError: it is larger, or it is not JSON, or not an object.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        # Anything else, a page of another site could send from a browser on this machine without asking first.
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the content type is {kind!r}", f"Send {_JSON}: curl --json does"
        )
    body = await _body(request, most_bytes)
    try:
        # Each value takes at least a character and a comma.
        value = await asyncio.to_thread(_parse, body) if len(body) > _LONG else _parse(body)
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {reason_of(error)}", "Mend it") from error
    if not isinstance(value, dict):
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is {kind_of(value)}", "Send a JSON object")
    return value


def _parse(body: bytes) -> Any:
    value = parse_json(body, len(body))
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError("a text in it has half of a character, such as \\ud800 alone") from error
    return value


async def _body(request: Request, most_bytes: int) -> bytes:
    too_large = RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body has more than {most_bytes} bytes",
        "Send less at once, or have the server take more",
    )
    declared = request.headers.get("content-length", "0")
    # (A server has already refused a length that is no number.)
    if declared.isdecimal() and int(declared) > most_bytes:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise too_large
    return bytes(body)


def check_fields(value: dict[str, Any], known: Iterable[str]) -> None:
    """Raise RequestError if an object has a field that is not known."""
    known = list(known)
    for name in value:
        if name not in known:
            raise RequestError(
                HTTPStatus.BAD_REQUEST, f"the field {name!r} is unknown", f"Known are {', '.join(known)}", param=name
            )


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Do work for a request whose body has been read, until it is done or the client leaves.

    Raises:
        ClientDisconnect: the client left; the work was cancelled.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        await _cancelled(task, leaving)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks, and wait until they have ended, having freed what they hold."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
