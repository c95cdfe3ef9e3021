"""A server of OpenAI's API that knows no model, answers at once, and misbehaves when told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Behaviour:
    """What the stub does, and what it has seen.

    A fault happens to the requests whose number, from 0, stands in its set.

    Attributes:
        requests: bodies of the streamed requests, in order of arrival.
        keys: their Authorization headers.
        pause: seconds between two tokens.
        blocked: seconds during which the stub answers nothing, from its first request on.
    """

    pause: float = 0.0
    first_pause: float = 0.0
    cached: int = 0
    refuse: dict[int, int] = field(default_factory=dict)
    retry_after: str | None = "1"
    cut: set[int] = field(default_factory=set)
    drop: set[int] = field(default_factory=set)
    error_frame: set[int] = field(default_factory=set)
    wrong_echo: set[int] = field(default_factory=set)
    wrong_token: set[int] = field(default_factory=set)
    same_id: set[int] = field(default_factory=set)
    mixed_ids: set[int] = field(default_factory=set)
    short: set[int] = field(default_factory=set)
    hang: set[int] = field(default_factory=set)
    bias: bool = True
    most_messages: int = 99
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def token_text(token: int) -> str:
    """Some ids are no text of their own, as in real vocabularies."""
    return "\ufffd" if token % 7 == 0 else f" t{token}"


class Stub:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.app = web.Application()
        self.app.router.add_get("/v1/models", self.models)
        self.app.router.add_post("/v1/completions", self.answer)
        self.app.router.add_post("/v1/chat/completions", self.answer)

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "stub", "object": "model"}]})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        did = self.behaviour
        bias = body.get("logit_bias")
        if bias and not did.bias:
            return web.json_response({"error": {"message": "no logit_bias"}}, status=400)
        token = int(next(iter(bias))) if bias else 1
        if not body.get("stream"):
            text = token_text(token) * body["max_tokens"]
            return web.json_response({"choices": [{"text": text, "message": {"content": text}}]})
        number = len(did.requests)
        did.requests.append(body)
        did.keys.append(request.headers.get("Authorization"))
        if len(body.get("messages", ())) > did.most_messages:
            told = {"message": "too long", "code": "context_length_exceeded"}
            return web.json_response({"error": told}, status=400)
        if number in did.refuse:
            headers = {} if did.retry_after is None else {"Retry-After": did.retry_after}
            told = {"error": {"message": "later", "type": "overloaded_error"}}
            return web.json_response(told, status=did.refuse[number], headers=headers)
        if number in did.hang:
            await asyncio.sleep(3600)
        return await self.stream(request, body, number, token)

    async def stream(
        self, request: web.Request, body: dict[str, Any], number: int, token: int
    ) -> web.StreamResponse:
        did = self.behaviour
        chat = "messages" in body
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await asyncio.sleep(did.first_pause)
        await response.prepare(request)
        name = "cmpl-same" if number in did.same_id else f"cmpl-{number}"

        async def send(event: dict[str, Any]) -> None:
            await response.write(f"data: {json.dumps(event)}\n\n".encode())

        def piece(text: str, finish: str | None = None) -> dict[str, Any]:
            what = {"delta": {"content": text}} if chat else {"text": text}
            return {"id": name, "choices": [{"index": 0, **what, "finish_reason": finish}]}

        await response.write(b": still here\n\n")
        if body.get("echo"):
            await send(piece("someone else's" if number in did.wrong_echo else body["prompt"]))
        wanted = body["max_tokens"] - (number in did.short)
        for i in range(wanted):
            if number in did.cut and i == 1:
                assert request.transport is not None
                request.transport.abort()
                return response
            if number in did.error_frame and i == 1:
                await send({"error": {"message": "the engine has failed"}})
                await response.write(b"data: [DONE]\n\n")
                return response
            if number in did.mixed_ids and i == 1:
                name = "cmpl-other"
            text = token_text(token + (number in did.wrong_token and i == 1))
            await send(piece(text, "length" if i == wanted - 1 else None))
            await asyncio.sleep(did.pause)
        prompt = body.get("prompt", "")
        usage = {
            "prompt_tokens": len(prompt) if isinstance(prompt, list) else 10,
            "completion_tokens": wanted,
            "prompt_tokens_details": {"cached_tokens": did.cached},
        }
        await send({"id": name, "choices": [], "usage": usage})
        if number not in did.drop:
            await response.write(b"data: [DONE]\n\n")
        return response


@contextmanager
def stub_server(behaviour: Behaviour) -> Iterator[str]:
    """The stub on a free port, in a thread of its own; yields its address."""
    ready = threading.Event()
    where: list[str] = []
    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        ends.append((asyncio.get_running_loop(), stop))
        runner = web.AppRunner(Stub(behaviour).app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        where.append(f"http://{host}:{port}")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield where[0]
    finally:
        for loop, stop in ends:
            loop.call_soon_threadsafe(stop.set)
        thread.join(10)
