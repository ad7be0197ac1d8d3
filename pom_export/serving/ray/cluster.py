"""Ray Serve, from its start to its end, with our application on it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import ray
from ray import serve
from ray.exceptions import RayError

from pom_export import interrupts
from pom_export.errors import InputError, reason_of
from pom_export.runtime.streaming.state import State
from pom_export.serving.ray.application import LOGGING, NAME, application
from pom_export.serving.ray.remote import Replicas
from pom_export.serving.ray.settings import RaySettings, joins_cluster
from pom_export.serving.service import Service
from pom_export.serving.settings import ServeSettings

# The last line of a trace.
_RAISED: Final = re.compile(r"[\w.]+(Error|Exception): ")
_WAIT_SECONDS: Final = 0.2
# What asking the front to finish may take besides the requests that run.
_MORE_SECONDS: Final = 10


class Deployed:
    """The application, deployed: a `Site`.

    Args:
        front: a handle of the front.
        settings: the application's.
    """

    def __init__(self, front: Any, settings: ServeSettings) -> None:
        self._front = front
        self._keeper = serve.get_deployment_handle("Keeper", NAME)
        self._settings = settings

    def add(self, sessions: Iterable[tuple[str, State]]) -> None:  # noqa: D102 (the protocol says it)
        for name, state in sessions:
            self._keeper.put.remote(name, state).result()

    def sessions(self) -> list[tuple[str, State]]:  # noqa: D102
        found: list[tuple[str, State]] = self._keeper.items.remote().result()
        return found

    def run(self, started: Callable[[], None]) -> int:  # noqa: D102
        started()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(_WAIT_SECONDS)
        number = interrupts.received()
        interrupts.listen()
        with contextlib.suppress(KeyboardInterrupt, RayError, TimeoutError):
            self._front.drain.remote().result(timeout_s=self._settings.finish_seconds + _MORE_SECONDS)
        interrupts.listen()
        return signal.SIGINT if number is None else number


def described(path: str | os.PathLike[str], settings: ServeSettings) -> Service:
    """Return the service as the front has it, but without replicas: it only describes the model.

    Raises:
        InputError: the model cannot be served.
    """
    return Service(path, settings, model=Replicas(None, None))


@contextmanager
def deployed(
    path: str | os.PathLike[str], settings: ServeSettings, replicas: RaySettings, host: str, port: int
) -> Iterator[Deployed]:
    """Yield the application on the cluster that RAY_ADDRESS names, or else on this machine's processors.

    Args:
        path: the model's path, on every machine of the cluster.
        settings: options and limits.
        replicas: the replicas.
        host: the address that Ray Serve listens on, on each of its machines.
        port: the port.

    Raises:
        InputError: there are too few processors, or Ray cannot deploy it.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with _ray(replicas):
        try:
            serve.start(http_options={"host": host, "port": port}, logging_config=LOGGING)
            front = serve.run(
                application(os.path.abspath(path), settings, replicas),  # noqa: PTH100 (keeps links)
                name=NAME,
                route_prefix="/",
            )
        except (RayError, RuntimeError) as error:
            raise InputError(f"Ray Serve cannot deploy it: {_reason(error)}", "Check its workers' logs") from error
        try:
            yield Deployed(front, settings)
        finally:
            with contextlib.suppress(RayError):
                serve.delete(NAME)


def _reason(error: Exception) -> str:
    """Return why a replica did not start, as it said in its trace; otherwise what Ray says."""
    deployments = serve.status().applications[NAME].deployments.values() if NAME in serve.status().applications else ()
    lines = [line.strip() for deployment in deployments for line in deployment.message.splitlines()]
    return next((line for line in reversed(lines) if _RAISED.match(line)), reason_of(error))


@contextmanager
def _ray(replicas: RaySettings) -> Iterator[None]:
    """Connect to a cluster; one of this machine's processors that was started for this is stopped at the end."""
    ours = not (ray.is_initialized() or joins_cluster())
    if not ray.is_initialized():
        options: dict[str, Any] = {"include_dashboard": False} if ours else {}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        interrupts.listen()  # Ray has put a handler of its own in the place of ours
    try:
        have = ray.cluster_resources().get("CPU", 0)
        need = replicas.replicas * replicas.replica_cpus
        if ours and need > have:
            raise InputError(
                f"{replicas.replicas} replicas take {need:g} processors, and this machine has {have:g}",
                "Start fewer, or reserve less for each",
            )
        yield
    finally:
        if ours:
            ray.shutdown()
