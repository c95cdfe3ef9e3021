"""The page for Prometheus."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._service import Service
from foreword.serving.http.watch._metrics import CONTENT_TYPE

OPERATIONS = (
    Operation(
        "get",
        "/metrics",
        "Counters, gauges and histograms for Prometheus",
        "server",
        (Answer("Prometheus' text form.", media="text/plain", schema={"type": "string"}),),
    ),
)


def routes() -> list[Route]:
    """/metrics."""
    return [Route("/metrics", _metrics, methods=["GET"])]


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"content-type": CONTENT_TYPE})
