"""The HTTP application over a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from pom_export.serving import steps
from pom_export.serving.errors import Failure
from pom_export.serving.metrics import CONTENT_TYPE, metrics_page
from pom_export.serving.middleware import Guard
from pom_export.serving.openai import routes
from pom_export.serving.service import Service
from pom_export.version import __version__

_PAGE_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def create_app(service: Service) -> FastAPI:
    """Return the application, which starts the service and stops it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.model.start()
        yield
        service.model.stop()

    # Its own pages would load programs from elsewhere.
    app = FastAPI(title="pom-export", version=__version__, lifespan=lifespan, openapi_url=None)
    app.add_middleware(Guard, service=service)
    app.add_exception_handler(HTTPException, _refused)
    _add_state(app, service)
    app.include_router(steps.router(service))
    app.include_router(routes.router(service))
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """Add a page to try the model by hand, which uses nothing but this server."""
    page = files("pom_export.serving").joinpath("page.html").read_text("utf-8")

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers=_PAGE_HEADERS)


def _add_state(app: FastAPI, service: Service) -> None:
    """Add what tells how the server is."""

    @app.get("/health")
    async def health() -> JSONResponse:
        return _said(service.model.alive or service.draining)

    @app.get("/ready")
    async def ready() -> JSONResponse:
        return _said(service.model.alive and not service.draining)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        sizes = await service.sessions.store.sizes()
        text = metrics_page(await service.model.metrics(), service.metrics, service.requests, sizes)
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no model {name!r}. This server has {service.name!r}")
        return _model(service)


def _said(well: bool) -> JSONResponse:
    return JSONResponse(
        {"status": "ok" if well else "unavailable"}, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
    )


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": int(service.file.path.stat().st_mtime),
        "owned_by": "pom-export",
        "inputs": str(service.interface.tokens),
        "outputs": str(service.interface.output),
        "tokenizer": None if service.tokenizer is None else service.tokenizer.name,
        "chat": service.chat is not None,
        "example": service.example,
        "state_bytes": service.state_bytes,
    }


async def _refused(_: Request, error: Exception) -> JSONResponse:
    """Answer a request for a path or with a method that there is not."""
    assert isinstance(error, HTTPException)
    failure = Failure(HTTPStatus(error.status_code), str(error.detail))
    return JSONResponse(failure.content, failure.status, error.headers)
