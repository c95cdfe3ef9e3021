"""Whether the server lives, whether it takes work, which version it is and how busy it is.

Open to everybody, and nothing in it is secret.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword import __version__
from foreword.serving.http._errors import ApiError
from foreword.serving.http._middleware import error_response
from foreword.serving.http._service import Service


def routes() -> list[Route]:
    """/health, /ready, /version and /load."""
    return [
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/version", _version),
        Route("/load", _load),
    ]


async def _health(request: Request) -> Response:
    return JSONResponse({})


async def _ready(request: Request) -> Response:
    service: Service = request.app.state.service
    if service.state == "ready":
        return JSONResponse({"state": "ready"})
    error = ApiError(
        503, f"the server is {service.state}", code="not_ready", headers={"Retry-After": "5"}
    )
    return error_response(error)


async def _version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def _load(request: Request) -> Response:
    return JSONResponse({})
