"""Servers that tests ask, each in a thread of this process, on a free port of this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from pom_export.serving.app import create_app
from pom_export.serving.server import bound_socket
from pom_export.serving.service import Service
from pom_export.serving.settings import ServeSettings


@dataclass(frozen=True)
class Running:
    """A service, and a client of it."""

    service: Service
    client: httpx.Client

    @property
    def address(self) -> tuple[str, int]:
        return self.client.base_url.host, int(self.client.base_url.port or 0)

    def steps(self, inputs: Any, **fields: Any) -> httpx.Response:
        given = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
        return self.client.post("/v1/steps", json={"inputs": given, **fields})


@contextmanager
def running(model: Path, **settings: Any) -> Iterator[Running]:
    """Serve a model, with a client that carries the key if there is one."""
    service = Service(model, ServeSettings(**settings))
    listening = bound_socket("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    host, port = listening.getsockname()
    headers = {} if service.settings.api_key is None else {"authorization": f"Bearer {service.settings.api_key}"}
    thread.start()
    try:
        wait_until(lambda: server.started)
        with httpx.Client(base_url=f"http://{host}:{port}", headers=headers, timeout=60, trust_env=False) as client:
            yield Running(service, client)
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Any, seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)
