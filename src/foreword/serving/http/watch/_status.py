"""Whether the server lives, whether it takes work, which version it is and how busy it is.

Open to everybody: load balancers have no keys, and nothing in it is secret.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword import __version__
from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._service import Service


class Health(BaseModel):
    """Nothing: the status says it."""


class Ready(BaseModel):
    """The server takes work."""

    state: Literal["ready"]


class Version(BaseModel):
    """Which release this is."""

    version: str


class Load(BaseModel):
    """How busy the engine is, in answers."""

    running: int = Field(ge=0, description="Answers in the batch.")
    waiting: int = Field(ge=0, description="Answers in line for it.")


OPERATIONS = (
    Operation(
        "get",
        "/health",
        "Whether the process and its engine live",
        "server",
        (Answer("They live.", Health),),
    ),
    Operation("get", "/ready", "Whether new work is taken", "server", (Answer("It is.", Ready),)),
    Operation("get", "/version", "The release", "server", (Answer("The release.", Version),)),
    Operation(
        "get",
        "/load",
        "Answers that run and that wait",
        "server",
        (Answer("The numbers.", Load),),
    ),
)


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
    now = service.llm.gauges()
    return JSONResponse({"running": now.running, "waiting": now.waiting})
