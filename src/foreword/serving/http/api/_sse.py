"""Server-sent events as OpenAI's clients read them, for as long as somebody reads."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foreword.serving.http._disconnect import run_until_disconnect
from foreword.serving.http._middleware import api_error

log = logging.getLogger("foreword.server")

DONE = b"data: [DONE]\n\n"
HEARTBEAT = b": still here\n\n"

_HEADERS = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would collect the pieces
}


class EventStream(Response):
    """A response of JSON values, an event each, and `[DONE]` at the end.

    Nothing is sent before the first value is there: an error until then is raised and gets a status
    of its own. A later one becomes an event `{"error": ...}`, and `[DONE]` follows it, too. While
    no value comes, a comment is sent every `heartbeat` seconds. The generator is closed however the
    response ends: at its end, when the client leaves, when the server cuts it off.
    """

    media_type = "text/event-stream"

    def __init__(  # without a body no length is announced
        self,
        request: Request,
        values: AsyncGenerator[Mapping[str, Any], None],
        heartbeat: float,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._request = request
        self._values = values
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await run_until_disconnect(self._request, self._run(send))

    async def _run(self, send: Send) -> None:
        async with aclosing(self._values) as values:
            first = await anext(values)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            writer = _Writer(send)
            beating = asyncio.ensure_future(writer.beat(self._heartbeat))
            try:
                await writer.write(event(first))
                async for value in values:
                    await writer.write(event(value))
            except Exception as error:
                await writer.write(event(self._told(error)))
            finally:
                beating.cancel()
                # Its end is no error; being cancelled meanwhile still is.
                await asyncio.gather(beating, return_exceptions=True)
            await writer.write(DONE, last=True)

    def _told(self, error: Exception) -> dict[str, Any]:
        service = self._request.app.state.service
        said = api_error(error, draining=service.state == "draining")
        if said.status == 500:
            log.error("request %s failed", self._request.state.request_id, exc_info=error)
        return said.body()


class _Writer:
    """Sends one piece after the other, whoever they come from."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._turn = asyncio.Lock()
        self._pieces = 0

    async def write(self, piece: bytes, *, last: bool = False) -> None:
        async with self._turn:
            self._pieces += 1
            await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def beat(self, seconds: float) -> None:
        """Send a comment whenever nothing was sent for so long."""
        while True:
            before = self._pieces
            await asyncio.sleep(seconds)
            if self._pieces == before:
                await self.write(HEARTBEAT)


def event(value: Mapping[str, Any]) -> bytes:
    """One event."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return f"data: {text}\n\n".encode()
