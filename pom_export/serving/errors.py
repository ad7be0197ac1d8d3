"""What a request that cannot be answered gets: a status, and one line in one shape."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

from pydantic import ValidationError

from pom_export.errors import PomExportError, PoolFullError, explained, printable
from pom_export.runtime.pool.pool import CallError
from pom_export.serving.worker import StoppedError

_LOG: Final = logging.getLogger(__name__)
# Seconds after which a request that found everything taken may try again.
RETRY_AFTER: Final = 1
_TRY_AGAIN: Final = {"retry-after": str(RETRY_AFTER)}


class RequestError(PomExportError):
    """A request that is refused.

    Args:
        status: its HTTP status.
        what: one line: what is wrong, and the value seen.
        hint: one line: what the client can do about it.
        param: the field of the request that it is about.
        code: a word for programs.
    """

    def __init__(
        self, status: HTTPStatus, what: str, hint: str = "", *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(what, hint)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True)
class Failure:
    """An error as a response.

    Attributes:
        status: the HTTP status.
        message: one line.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: further headers.
    """

    status: HTTPStatus
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """The JSON, in the shape that OpenAI's API uses."""
        kind = "server_error" if self.status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        """The JSON as bytes."""
        return json.dumps(self.content).encode()


def failure_of(error: BaseException) -> Failure:
    """Return the response for an exception; one that nobody expected is logged with its trace."""
    if isinstance(error, RequestError):
        headers = _TRY_AGAIN if error.status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE) else {}
        return Failure(error.status, str(error), error.param, error.code, headers)
    if isinstance(error, PoolFullError):
        return Failure(HTTPStatus.TOO_MANY_REQUESTS, str(error), code="full", headers=_TRY_AGAIN)
    if isinstance(error, StoppedError):
        return Failure(HTTPStatus.SERVICE_UNAVAILABLE, str(error), code="ending", headers=_TRY_AGAIN)
    if isinstance(error, CallError):
        return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, str(error), code="call_failed")
    if isinstance(error, PomExportError):
        return Failure(HTTPStatus.BAD_REQUEST, str(error))
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(map(str, first["loc"]))
        return Failure(HTTPStatus.BAD_REQUEST, printable(f"{param}: {first['msg']}"), printable(param))
    _LOG.error("internal error", exc_info=error)
    return Failure(HTTPStatus.INTERNAL_SERVER_ERROR, printable(str(explained(error))), code="internal_error")
