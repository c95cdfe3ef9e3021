"""The live page: the prefix tree as it grows, is shared and is dropped, and a place to try it.

The page and its parts are open; what it shows comes from `/live/state` and `/live/events`, which
are for operators. Nothing is looked at while nobody watches.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foreword._errors import ForewordError
from foreword.serving.http._errors import ApiError
from foreword.serving.http._service import Service
from foreword.serving.http.live._live_schemas import OPERATIONS as OPERATIONS
from foreword.serving.http.live._live_state import Look, Observer, decoder, describe

MAX_WATCHERS = 16
"""Open event streams; further ones get 503."""
INTERVAL = 0.5
"""Seconds between two states in a stream, at least."""

_FOLDER = Path(__file__).parent / "page"
_TYPES = {".css": "text/css", ".js": "text/javascript"}
_ASSETS = frozenset(
    {
        "api.js",
        "block.js",
        "feed.js",
        "format.js",
        "main.js",
        "numbers.js",
        "page.css",
        "parts.css",
        "playground.js",
        "shape.js",
        "tree.css",
        "tree.js",
    }
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """The page at `/`, what it shows, and its parts, in this order of matching."""
    return [
        Route("/", _page, methods=["GET"]),
        Route("/live/state", _state, methods=["GET"]),
        Route("/live/events", _events, methods=["GET"]),
        Route("/live/{asset}", _part, methods=["GET"]),
    ]


class Feed:
    """States of one service for everybody who watches: however many do, the engine is asked once.

    Belongs to one event loop.

    Args:
        service: what is watched.
        interval: seconds for which a state is good enough.
    """

    def __init__(self, service: Service, interval: float = INTERVAL) -> None:
        self._service = service
        self._interval = interval
        self._observer = Observer({service.isolation.salt(t): t for t in service.keys.weights})
        self._lock = asyncio.Lock()
        self._made: float | None = None
        self._state = b""
        tokenizer = service.llm.tokenizer
        shown = service.config.live_text
        if shown is None:
            shown = service.keys.empty
        self._text = decoder(tokenizer) if shown and tokenizer is not None else None
        self.watchers = 0

    async def state(self) -> bytes:
        """One state as JSON, at most `interval` old.

        Raises:
            ApiError: 503, the engine is closed.
        """
        async with self._lock:
            if self._made is None or time.monotonic() - self._made >= self._interval:
                try:
                    look = await self._service.llm.run(self._observer.look)
                except ForewordError as error:
                    raise ApiError(503, f"nothing to be seen: {error}", code="closed") from error
                self._state = await asyncio.to_thread(self._render, look)
                self._made = time.monotonic()
            return self._state

    def _render(self, look: Look) -> bytes:
        service = self._service
        state = {"model": service.model, "state": service.state, **describe(look, self._text)}
        return json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "replace"
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: a state whenever it changed, a comment when nothing has for a while.

        Ends when the server goes down.
        """
        sent, silent_since = b"", time.monotonic()
        while True:
            state = await self.state()
            if state != sent:
                sent, silent_since = state, time.monotonic()
                yield b"data: " + state + b"\n\n"
            elif time.monotonic() - silent_since >= self._service.config.heartbeat_seconds:
                silent_since = time.monotonic()
                yield b": nothing new\n\n"
            if self._service.state == "draining":
                return
            await asyncio.sleep(self._interval)

    def check(self) -> None:
        """Whether one more may watch.

        Raises:
            ApiError: 503 with Retry-After, too many do.
        """
        if self.watchers >= MAX_WATCHERS:
            raise ApiError(
                503,
                f"{MAX_WATCHERS} watch already: close another live page",
                code="too_many_watchers",
                headers={"Retry-After": "10"},
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count one watcher for as long as it lasts."""
        self.watchers += 1
        try:
            yield
        finally:
            self.watchers -= 1


class _EventStream(StreamingResponse):
    """The stream of a feed; its place is given back however it ends."""

    def __init__(self, feed: Feed) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(feed.events(), media_type="text/event-stream", headers=headers)
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.watching():
            await super().__call__(scope, receive, send)


def feed_of(request: Request) -> Feed:
    """The application's feed, made when somebody first looks."""
    state = request.app.state
    if not hasattr(state, "live"):
        state.live = Feed(state.service)
    feed: Feed = state.live
    return feed


async def _state(request: Request) -> Response:
    headers = {"Cache-Control": "no-store"}
    body = await feed_of(request).state()
    return Response(body, media_type="application/json", headers=headers)


async def _events(request: Request) -> Response:
    feed = feed_of(request)
    feed.check()
    await feed.state()  # an engine that is closed gets its own status, not an empty stream
    feed.check()
    return _EventStream(feed)


async def _page(request: Request) -> Response:
    return Response(_read("index.html"), media_type="text/html", headers=_HEADERS)


async def _part(request: Request) -> Response:
    name = request.path_params["asset"]
    if name not in _ASSETS:
        raise ApiError(404, "the live page has no such part", code="not_found")
    return Response(_read(name), media_type=_TYPES[Path(name).suffix], headers=_HEADERS)


@cache
def _read(name: str) -> bytes:
    return (_FOLDER / name).read_bytes()
