"""A model whose replicas are elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy.typing as npt

from pom_export.runtime.streaming.state import State
from pom_export.serving.metrics import ModelMetrics
from pom_export.serving.model import Step
from pom_export.serving.ray.answers import Deaths, answer_of, resubmitted
from pom_export.serving.ray.resuming import RemoteTexts
from pom_export.serving.texts import News, TextJob

Array = npt.NDArray[Any]


class Replicas:
    """A `Model` that sends each request to one of several replicas: those of a session to the same, while it lives.

    A replica that dies loses nothing, for what a request continues from is sent with it: another replica reads it.

    Args:
        replicas: a handle of their deployment.
        keeper: a handle of the keeper's.
    """

    def __init__(self, replicas: Any, keeper: Any) -> None:
        self._replicas = replicas
        self._keeper = keeper

    @property
    def alive(self) -> bool:
        """Whether it answers: Ray starts other replicas in place of those that die."""
        return True

    def start(self) -> None:  # noqa: D102 (the protocol says it)
        pass

    def stop(self) -> None:  # noqa: D102
        pass

    async def read(self, state: State | None, tokens: Array, *, every: bool, session: str | None) -> Step:  # noqa: D102
        handle = self._handle(session)
        return answer_of(await resubmitted(lambda: handle.read.remote(state, tokens, every), Deaths()))

    @asynccontextmanager
    async def continued(  # noqa: D102
        self, jobs: Sequence[TextJob], *, session: str | None
    ) -> AsyncIterator[AsyncIterator[News]]:
        texts = RemoteTexts(self._handle(session, stream=True), jobs)
        try:
            await texts.begin()
            yield texts.news()
        finally:
            texts.leave()

    async def metrics(self) -> ModelMetrics:  # noqa: D102
        metrics: ModelMetrics | None = await self._keeper.metrics.remote()
        return metrics if metrics is not None else await self._replicas.metrics.remote()

    def _handle(self, session: str | None, **options: Any) -> Any:
        return self._replicas.options(**options, **({} if session is None else {"session_id": session}))
