"""What HTTP requests reach first: the application, in front of the replicas."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

from ray import serve

from pom_export.serving.app import create_app
from pom_export.serving.ray.keeper import KeptElsewhere
from pom_export.serving.ray.remote import Replicas
from pom_export.serving.service import Service
from pom_export.serving.settings import ServeSettings

_POLL_SECONDS: Final = 0.05


@serve.ingress()
class Front:
    """Answers HTTP requests.

    Args:
        path: the model's path, on every machine of the cluster.
        settings: options and limits.
        replicas: a handle of the replicas' deployment.
        keeper: a handle of the keeper's.
    """

    def __init__(self, path: str | os.PathLike[str], settings: ServeSettings, replicas: Any, keeper: Any) -> None:
        self._service = Service(path, settings, KeptElsewhere(keeper), Replicas(replicas, keeper))

    def __serve_build_asgi_app__(self) -> Any:
        return create_app(self._service)

    async def drain(self) -> None:
        """Refuse new requests, and return once those that run are answered or the time for that is over."""
        self._service.draining = True
        loop = asyncio.get_running_loop()
        end = loop.time() + self._service.settings.finish_seconds
        while self._service.requests and loop.time() < end:
            await asyncio.sleep(_POLL_SECONDS)
