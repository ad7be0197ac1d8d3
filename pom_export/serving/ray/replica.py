"""A replica: the model in a process of Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import numpy.typing as npt
from ray import serve
from ray.exceptions import RayError

from pom_export.runtime.streaming.state import State
from pom_export.serving.errors import Failure, failure_of
from pom_export.serving.metrics import ModelMetrics
from pom_export.serving.model import LocalModel, Step
from pom_export.serving.settings import ServeSettings
from pom_export.serving.texts import News, TextJob

Array = npt.NDArray[Any]
_REPORT_SECONDS: Final = 1.0


class Replica:
    """Runs the model. It keeps no session: a request brings the state that it continues from.

    What fails is returned as a `Failure`, since Ray would wrap an exception in its own traces.

    Args:
        path: the model's path, on every machine of the cluster.
        settings: limits.
        keeper: a handle of the keeper's deployment.
    """

    # Ray awaits it in the event loop that answers the requests.
    async def __init__(  # type: ignore[misc]
        self, path: str | os.PathLike[str], settings: ServeSettings, keeper: Any
    ) -> None:
        self._model = LocalModel(path, settings)
        self._model.start()
        self._keeper = keeper
        self._reporting = asyncio.ensure_future(self._report())

    async def check_health(self) -> None:
        """Raise if the model does not answer; Ray then starts another replica."""
        if not self._model.alive:
            raise RuntimeError("the model's thread has ended")

    async def read(self, state: State | None, tokens: Array, every: bool) -> Step | Failure:
        """Do what `Model.read` says."""
        try:
            return await self._model.read(state, tokens, every=every)
        except Exception as error:  # noqa: BLE001 (returned)
            return failure_of(error)

    async def texts(self, jobs: Sequence[TextJob]) -> AsyncIterator[News | Failure | None]:
        """Do what `Model.continued` says; the first item is None once the texts have begun."""
        try:
            async with self._model.continued(jobs) as news:
                yield None
                async for each in news:
                    yield each
        except Exception as error:  # noqa: BLE001 (returned)
            yield failure_of(error)

    async def metrics(self) -> ModelMetrics:
        """Return what this replica has done and holds."""
        return await self._model.metrics()

    async def _report(self) -> None:
        name = serve.get_replica_context().replica_id.unique_id
        while True:
            with contextlib.suppress(RayError):  # a keeper that is being restarted
                await self._keeper.report.remote(name, await self._model.metrics())
            await asyncio.sleep(_REPORT_SECONDS)
