"""The ASGI application: routes, and what every request passes through on the way to them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from foreword.serving.http import _openapi
from foreword.serving.http._middleware import (
    Auth,
    Edge,
    Failures,
    MediaTypes,
    Origins,
    api_error,
    error_response,
)
from foreword.serving.http._service import Service
from foreword.serving.http.api import (
    _chat_completions,
    _completions,
    _models,
    _prefixes,
    _tokens,
)
from foreword.serving.http.batches import _batch_jobs, _batches, _files
from foreword.serving.http.live import _live
from foreword.serving.http.watch import _metrics_route, _status

_AREAS = (
    _status,
    _models,
    _completions,
    _chat_completions,
    _tokens,
    _prefixes,
    _openapi,
    _files,
    _batches,
    _metrics_route,
    _live,
)


def create_app(service: Service) -> Starlette:
    """The application of a service; it closes neither the service nor its engine.

    `app.state.service` is the service; `app.state.open_requests` holds something for each request
    that is being answered.
    """
    routes = _routes()
    open_requests: set[object] = set()
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Edge, service=service, routes=routes, open_requests=open_requests),
            Middleware(Failures, service=service),
            Middleware(Origins, service=service),
            Middleware(Auth, service=service),
            Middleware(MediaTypes),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=_lifespan,
    )
    # A path with a slash too many is a mistake to name: a redirect would send the body again.
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.open_requests = open_requests
    return app


def _routes() -> list[BaseRoute]:
    return [route for area in _AREAS for route in area.routes()]


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    """What runs beside the requests: batches that an earlier start left unfinished."""
    async with _batch_jobs.lifespan(app.state.service):
        yield


async def _http_error(request: Request, error: Exception) -> Response:
    return error_response(api_error(error))
