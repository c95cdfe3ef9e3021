"""A prepared request's answer, whole or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from foreword.engine import Chunk, Result
from foreword.serving.http._disconnect import run_until_disconnect
from foreword.serving.http._operations import Parameter
from foreword.serving.http._service import Service, seconds_asked
from foreword.serving.http.api._pieces import Kind, failed, stream_objects
from foreword.serving.http.api._prepare import Prepared
from foreword.serving.http.api._sse import EventStream

TIMEOUT = Parameter(
    "x-request-timeout",
    "header",
    {"type": "string", "pattern": "^[0-9]{1,9}([.][0-9]{1,9})?$"},
    "Seconds that the caller waits for the whole answer; the server may wait less.",
)


async def answer(
    request: Request,
    kind: Kind,
    prepared: Prepared,
    body: Callable[[list[Result]], dict[str, Any]],
) -> Response:
    """Run a request and write its answer; `body` makes a whole one of the results in order.

    Raises:
        ApiError: as `Service.answer`; 400, `x-request-timeout` is no number of seconds; 500, a
            prompt could not be answered.
    """
    service: Service = request.app.state.service
    seconds = seconds_asked(request.headers.get("x-request-timeout"))
    events = service.answer(request.state.caller, replace(prepared.job, seconds=seconds))
    if prepared.stream:
        objects = stream_objects(kind, prepared, events, service.llm.tokenizer)
        return EventStream(request, objects, service.config.heartbeat_seconds)
    return JSONResponse(body(await run_until_disconnect(request, _results(events))))


async def _results(events: AsyncGenerator[Chunk | Result, None]) -> list[Result]:
    found: list[Result] = []
    async with aclosing(events):
        async for item in events:
            if isinstance(item, Result):
                if item.error is not None:
                    raise failed(item)
                found.append(item)
    return sorted(found, key=lambda result: result.index)
