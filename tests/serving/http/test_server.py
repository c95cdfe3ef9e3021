"""A server's life: it starts, hears of clients that leave, drains and ends."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from foreword.engine import AsyncLLM
from foreword.serving.http import Server, ServerConfig, ServerError, Service
from foreword.serving.http import _app as app_module
from foreword.serving.http._disconnect import ClosingStream, run_until_disconnect
from tests.serving.http.conftest import LiveServer

LONG = {"model": "nano", "prompt": "Once upon a time", "max_tokens": 4000, "ignore_eos": True}
"""An answer that takes far longer than any of these tests."""


class Held:
    """A route whose stream goes on when the test says so."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    async def handle(self, request: Request) -> Response:
        async def pieces() -> Any:
            yield b"one,"
            await asyncio.to_thread(self.go_on.wait, 20)
            yield b"two"

        return ClosingStream(pieces())


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """`/held` beside the real routes."""
    it, real = Held(), app_module._routes
    monkeypatch.setattr(app_module, "_routes", lambda: [*real(), Route("/held", it.handle)])
    yield it
    it.go_on.set()


@contextmanager
def _stream(url: str, body: dict[str, Any] | None = None) -> Iterator[Any]:
    """An answer whose first piece has come, and the pieces that follow."""
    method, json = ("GET", None) if body is None else ("POST", {**body, "stream": True})
    with (
        httpx.Client(timeout=20) as client,
        client.stream(method, url, json=json) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        pieces = answer.iter_bytes()
        yield next(pieces), pieces


def _idle(llm: AsyncLLM) -> bool:
    return not asyncio.run(llm.run(lambda engine: engine.has_work))


def test_draining_lets_what_runs_end_and_refuses_what_comes(
    held: Held,
    make_service: Callable[..., Service],
    start_server: Callable[..., LiveServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = start_server(make_service())
    aborted: list[str] = []
    monkeypatch.setattr(live.service.llm, "abort_all", aborted.append)
    assert httpx.get(f"{live.url}/ready").status_code == 200
    with _stream(f"{live.url}/held") as (first, rest):
        live.server.stop()
        for method, path in (("GET", "/ready"), ("POST", "/v1/completions")):
            answer = httpx.request(
                method, f"{live.url}{path}", json={} if method == "POST" else None
            )
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["connection"] == "close"
        assert httpx.get(f"{live.url}/health").status_code == 200
        held.go_on.set()
        assert first + b"".join(rest) == b"one,two"
    assert aborted == []
    assert live.server.ended.wait(20)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{live.url}/health")


@pytest.mark.parametrize("stops", [1, 2], ids=["time-is-over", "second-signal"])
def test_what_does_not_end_in_time_is_aborted_and_told(
    make_service: Callable[..., Service], start_server: Callable[..., LiveServer], stops: int
) -> None:
    config = ServerConfig(drain_seconds=0.1 if stops == 1 else 600)
    live = start_server(make_service(config=config))
    whole: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: whole.append(httpx.post(f"{live.url}/v1/completions", json=LONG, timeout=30))
    )
    with _stream(f"{live.url}/v1/completions", LONG) as (_, rest):
        asking.start()
        while live.service.llm.gauges().running < 2:
            pass
        for _ in range(stops):
            live.server.stop()
        frames = [line for line in b"".join(rest).decode().split("\n\n") if line]
    asking.join()
    assert live.server.ended.wait(20)
    assert frames[-1] == "data: [DONE]"
    assert json.loads(frames[-2].removeprefix("data: "))["error"]["message"]
    assert whole[0].status_code == 503
    assert whole[0].json()["error"]["code"] == "not_ready"


def test_watchers_of_endless_streams_hold_nothing_up(
    make_service: Callable[..., Service],
    start_server: Callable[..., LiveServer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    live = start_server(make_service(config=ServerConfig(drain_seconds=600)))
    with httpx.Client(timeout=20) as client, client.stream("GET", f"{live.url}/live/events") as it:
        next(it.iter_bytes())
        live.server.stop()
        assert live.server.ended.wait(20)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_ends_its_answer(
    live_server: LiveServer, llm: AsyncLLM, stream: bool, how: str
) -> None:
    before = llm.gauges()
    body = json.dumps({**LONG, "stream": stream}).encode()
    host, port = live_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        while not llm.gauges().running:
            pass
        if how == "reset":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    while not _idle(llm):
        pass
    assert llm.gauges().generated_tokens - before.generated_tokens < LONG["max_tokens"]  # type: ignore[operator]


def test_an_address_that_is_taken(service: Service) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        service.config = ServerConfig(port=other.getsockname()[1])
        with pytest.raises(ServerError, match=r"cannot listen on 127\.0\.0\.1 port"):
            Server(service).bind()


def test_an_address_that_is_not_ours(service: Service) -> None:
    service.config = ServerConfig(host="192.0.2.1")
    with pytest.raises(ServerError, match=r"192\.0\.2\.1"):
        Server(service).bind()


def test_an_application_that_cannot_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(service: Service) -> Any:
        raise RuntimeError("no batches today")

    monkeypatch.setattr(app_module._batch_jobs, "lifespan", broken)
    service.config = ServerConfig(port=0)
    with pytest.raises(ServerError, match="could not start"), Server(service).in_thread():
        pass


# run_until_disconnect


def _request(messages: asyncio.Queue[Any]) -> Request:
    return Request({"type": "http", "headers": []}, messages.get)


def test_work_is_awaited_while_the_client_stays() -> None:
    async def answer(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def fail() -> int:
        raise LookupError

    async def main() -> None:
        request = _request(asyncio.Queue())
        assert await run_until_disconnect(request, answer(7)) == 7
        with pytest.raises(LookupError):
            await run_until_disconnect(request, fail())
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("cancelled", [False, True], ids=["left", "cancelled"])
def test_work_has_ended_when_the_client_left(cancelled: bool) -> None:
    async def main() -> None:
        messages: asyncio.Queue[Any] = asyncio.Queue()
        begun, ended = asyncio.Event(), asyncio.Event()

        async def work() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # what it gives back takes a moment
                ended.set()

        task = asyncio.create_task(run_until_disconnect(_request(messages), work()))
        await begun.wait()
        if cancelled:
            task.cancel()
        else:
            messages.put_nowait({"type": "http.disconnect"})
        with pytest.raises(asyncio.CancelledError if cancelled else ClientDisconnect):
            await task
        assert ended.is_set()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())
