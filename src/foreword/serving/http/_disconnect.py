"""Callers that leave: their work is ended instead of finished for nobody.

A handler that makes a whole answer awaits `run_until_disconnect(request, coroutine)`; one that
streams returns a `ClosingStream`. Both end the work within a step of the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Send

T = TypeVar("T")


async def run_until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises, as long as somebody waits for it.

    The body has to be read before: what is left of it would be thrown away. When the client leaves,
    or the handler is cancelled, `work` is cancelled and has ended before this returns.

    Raises:
        ClientDisconnect: the client left; the application answers nobody then, and handlers let
            it pass.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        await _end(working, leaving)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel and wait, whatever comes; an error that nobody will read is looked at here."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class ClosingStream(StreamingResponse):
    """A streamed answer that closes its generator however it ends, also in the middle of a send.

    The plain response leaves that to the collector of garbage, and until then the request runs on.
    The generator must not have been started by somebody who still uses it.
    """

    def __init__(self, content: AsyncGenerator[str | bytes, None], **settings: Any) -> None:
        super().__init__(content, **settings)
        self._generator = content

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await self._generator.aclose()
