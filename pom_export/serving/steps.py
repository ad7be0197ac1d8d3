"""`POST /v1/steps`: numbers or ids in, the model's outputs out, by session."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, fields
from http import HTTPStatus
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from pom_export.errors import kind_of
from pom_export.serving.arrays import BASE64, ENCODINGS, LISTS, decoded, encoded
from pom_export.serving.errors import RequestError
from pom_export.serving.model import Step
from pom_export.serving.requests import check_fields, read_object, while_connected
from pom_export.serving.service import Service
from pom_export.serving.sessions import Session
from pom_export.values import is_whole

Array = npt.NDArray[Any]

SESSION_HEADER: Final = "x-session-id"


@dataclass(frozen=True)
class StepsRequest:
    """A request for steps.

    Attributes:
        inputs: ids (tokens,), or vectors (tokens, d).
        session: the session that it continues; None: it stands alone.
        after: number of tokens that the session must have seen; None: any.
        every: whether every token's output is wanted, instead of the last one's.
        encoding: the form of the outputs.
    """

    inputs: Array
    session: str | None
    after: int | None
    every: bool
    encoding: str


def parsed(value: dict[str, Any], header: str | None) -> StepsRequest:
    """Return a request.

    Args:
        value: the JSON.
        header: the session that the request's header names.

    Raises:
        RequestError: a field is missing, unknown, or not what it must be.
    """
    check_fields(value, [field.name for field in fields(StepsRequest)])
    if "inputs" not in value:
        raise RequestError(
            HTTPStatus.BAD_REQUEST, "inputs are missing", "Give the tokens' ids or vectors", param="inputs"
        )
    after, every = value.get("after"), value.get("every", False)
    if after is not None and not (is_whole(after) and after >= 0):
        raise _wrong("after", after, "a number of tokens")
    if not isinstance(every, bool):
        raise _wrong("every", every, "true or false")
    encoding = value.get("encoding", BASE64 if isinstance(value["inputs"], dict) else LISTS)
    if encoding not in ENCODINGS:
        raise _wrong("encoding", encoding, " or ".join(ENCODINGS))
    session = value.get("session")
    return StepsRequest(
        decoded(value["inputs"], "inputs"), header if session is None else session, after, every, encoding
    )


def _wrong(name: str, value: Any, wanted: str) -> RequestError:
    shown = repr(value) if isinstance(value, (str, int, float)) else kind_of(value)
    return RequestError(HTTPStatus.BAD_REQUEST, f"{name} is {shown}, not {wanted}", param=name)


def router(service: Service) -> APIRouter:
    """Return the routes of steps and sessions."""
    routes = APIRouter()

    @routes.post("/v1/steps")
    async def steps(request: Request) -> JSONResponse:
        value = await read_object(request, service.settings.most_body)
        wanted = parsed(value, request.headers.get(SESSION_HEADER))
        return await while_connected(request, _answer(service, wanted))

    @routes.delete("/v1/sessions/{name}")
    async def end(name: str) -> dict[str, Any]:
        return {"session": name, "deleted": await service.sessions.drop(name)}

    return routes


async def _answer(service: Service, wanted: StepsRequest) -> JSONResponse:
    inputs = wanted.inputs if service.interface.takes_ids else wanted.inputs.astype(np.float64)
    _check_sizes(service, inputs, every=wanted.every)
    async with service.sessions.use(wanted.session) as session:
        _check_length(session, wanted.after)
        step = await service.model.read(session.state, inputs, every=wanted.every, session=session.name)
        _check_finite(service, step)
        if session.name is not None:
            await session.keep(step.state)
    outputs = await asyncio.to_thread(encoded, step.outputs, wanted.encoding)
    return JSONResponse({"model": service.name, "session": wanted.session, "length": step.length, "outputs": outputs})


def _check_sizes(service: Service, inputs: Array, *, every: bool) -> None:
    """Raise RequestError for more tokens, or larger outputs, than a request may have."""
    tokens, settings = len(inputs) if inputs.ndim else 0, service.settings
    if tokens > settings.most_tokens:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{tokens} tokens are more than the {settings.most_tokens} of a request",
            "Send them in pieces, in a session",
            param="inputs",
        )
    output = service.interface.output
    size = math.prod(output.token_shape) * output.dtype.itemsize
    if every and tokens * size > settings.most_output:
        raise RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the outputs of {tokens} tokens have {tokens * size} bytes; an answer has at most {settings.most_output}",
            "Send them in pieces, in a session",
            param="every",
        )


def _check_length(session: Session, after: int | None) -> None:
    length = 0 if session.state is None else int(session.state.lengths[0])
    if after is not None and after != length:
        raise RequestError(
            HTTPStatus.CONFLICT,
            f"the session has seen {length} tokens, not {after}",
            "Send all from the beginning, in a new session",
            param="after",
            code="session_differs",
        )


def _check_finite(service: Service, step: Step) -> None:
    """Raise RequestError for outputs that are no numbers: of vectors that are too large, or of a broken model."""
    if np.isfinite(step.outputs.astype(np.float32)).all():
        return
    by_client = not service.interface.takes_ids
    raise RequestError(
        HTTPStatus.UNPROCESSABLE_ENTITY if by_client else HTTPStatus.INTERNAL_SERVER_ERROR,
        "the model's output holds NaN or infinity; the session is as before",
        "Give smaller numbers" if by_client else "Compare the file with its checkpoint: `pom-export verify`",
        code="not_finite",
    )
