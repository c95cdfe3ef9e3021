"""Whether the server lives, whether it takes work, which version it is and how busy it is.

Open to everybody: load balancers have no keys, and nothing in it is secret.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword import __version__
from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http._service import Service

if TYPE_CHECKING:
    from foreword.engine import Engine


def routes() -> list[Route]:
    """/health, /ready, /version and /load."""
    return [
        Route("/health", _health),
        Route("/ready", _ready),
        Route("/version", _version),
        Route("/load", _load),
    ]


async def _health(request: Request) -> Response:
    """200 while the process lives and its engine can answer, whatever state it is in."""
    service: Service = request.app.state.service
    if not service.llm.alive:
        raise ApiError(503, "the engine has ended: restart the server", code="engine_dead")
    return JSONResponse({})


async def _ready(request: Request) -> Response:
    """200 while new work is taken."""
    service: Service = request.app.state.service
    if service.state != "ready" or not service.llm.alive:
        raise not_ready(service.state)
    return JSONResponse({"state": "ready"})


async def _version(request: Request) -> Response:
    return JSONResponse({"version": __version__})


async def _load(request: Request) -> Response:
    """Answers that run and that wait for a seat."""
    service: Service = request.app.state.service

    def look(engine: Engine) -> tuple[int, int]:
        return engine.running, engine.waiting

    running, waiting = await service.llm.run(look)
    return JSONResponse({"running": running, "waiting": waiting})
