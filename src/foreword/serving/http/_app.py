"""The ASGI application: routes, and what every request passes through on the way to them."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.serving.http._service import Service


def create_app(service: Service) -> Starlette:
    """The application of a service; it closes neither the service nor its engine."""
    app = Starlette(routes=[Route("/health", _health)])
    app.state.service = service
    return app


async def _health(request: Request) -> Response:
    return JSONResponse({})
