"""Replicas' answers, and what is done when one dies before it has answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Final, TypeVar

from ray.exceptions import RayActorError

from pom_export.errors import InputError
from pom_export.serving.errors import Failure, RequestError

_Answer = TypeVar("_Answer")

# How many replicas a request is sent to that die one after the other: it may be what they die of.
_MOST_TRIES: Final = 4
_WAIT_SECONDS: Final = 0.25


class Deaths:
    """Counts the replicas that died before they had told anything new of a request."""

    def __init__(self) -> None:
        self._count = 0

    def forget(self) -> None:
        """Begin anew: there is news."""
        self._count = 0

    async def another(self) -> None:
        """Count another, and wait a little before the request is sent to the next.

        Raises:
            RequestError: it was one too many.
        """
        self._count += 1
        if self._count == _MOST_TRIES:
            raise RequestError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{_MOST_TRIES} replicas died, one after the other, before they answered",
                "Try again later",
            )
        await asyncio.sleep(_WAIT_SECONDS * self._count)


async def resubmitted(ask: Callable[[], Awaitable[_Answer]], deaths: Deaths) -> _Answer:
    """Ask a replica, and another if it dies before it has answered.

    Raises:
        RequestError: replicas have died again and again.
    """
    while True:
        try:
            return await ask()
        except RayActorError:
            await deaths.another()


def answer_of(answer: _Answer | Failure) -> _Answer:
    """Return a replica's answer.

    Raises:
        InputError: it did not fit the model.
        RequestError: it failed otherwise.
    """
    if isinstance(answer, Failure):
        if answer.status == HTTPStatus.BAD_REQUEST and not (answer.param or answer.code):
            raise InputError(answer.message)
        raise RequestError(answer.status, answer.message, param=answer.param, code=answer.code)
    return answer
