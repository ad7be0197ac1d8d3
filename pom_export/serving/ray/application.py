"""The application of Ray Serve: a front, replicas of the model, and a keeper."""

from __future__ import annotations

import os
from typing import Any, Final

from ray import serve
from ray.serve.config import RequestRouterConfig

from pom_export.serving.ray.front import Front
from pom_export.serving.ray.keeper import Keeper
from pom_export.serving.ray.replica import Replica
from pom_export.serving.ray.settings import RaySettings
from pom_export.serving.settings import ServeSettings

NAME: Final = "pom-export"
_ROUTER: Final = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
LOGGING: Final = {"log_level": "WARNING", "enable_access_log": False}
# Of the front, which only waits for the replicas, and of the keeper.
_MANY: Final = 10_000


def application(path: str | os.PathLike[str], settings: ServeSettings, replicas: RaySettings) -> serve.Application:
    """Return what `ray.serve.run` deploys.

    Args:
        path: the model's path, on every machine of the cluster.
        settings: options and limits; those of streams are each replica's.
        replicas: how many replicas of the model there are.
    """
    aside: dict[str, Any] = {"max_ongoing_requests": _MANY, "ray_actor_options": {"num_cpus": 0}}
    keeper = serve.deployment(Keeper, logging_config=LOGGING, **aside).bind(settings)
    models = serve.deployment(
        Replica,
        # A replica makes requests wait by itself, and refuses what is too much.
        max_ongoing_requests=2 * (settings.streams + settings.queue),
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        ray_actor_options={"num_cpus": replicas.replica_cpus},
        graceful_shutdown_timeout_s=settings.finish_seconds,
        logging_config=LOGGING,
        **replicas.scaling,
    ).bind(path, settings, keeper)
    front = serve.deployment(
        Front, graceful_shutdown_timeout_s=settings.finish_seconds, logging_config=LOGGING, **aside
    )
    return front.bind(path, settings, models, keeper)
