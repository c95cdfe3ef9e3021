"""Clients that are slow, broken or too many, each with a real socket."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.engine import AsyncLLM
from foreword.serving.http import ServerConfig, Service
from foreword.serving.http import _app as app_module
from foreword.serving.http._body import read_json
from foreword.serving.http._disconnect import ClosingStream
from tests.serving.http.conftest import LiveServer, started

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = (
    b"POST /read HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n"
)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        error = json.loads(self.body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return str(error["code"])


def _parse(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("ascii").split("\r\n")
    headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in rest)}
    return Answer(int(first.split()[1]), headers, body)


class Line:
    """A client's end of a connection."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)

    def send(self, data: bytes) -> Line:
        self.socket.sendall(data)
        return self

    def all(self) -> bytes:
        """What comes until the server hangs up."""
        found = b""
        while piece := self.socket.recv(65536):
            found += piece
        return found

    def one(self) -> int:
        """The status of the next answer of /health, read to its end."""
        found = b""
        while not found.endswith(b"\r\n\r\n{}"):
            piece = self.socket.recv(65536)
            assert piece, f"the server hung up after {found!r}"
            found += piece
        return _parse(found).status

    def answer(self) -> Answer:
        return _parse(self.all())

    def close(self) -> None:
        self.socket.close()


@contextmanager
def _served(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch, limits: dict[str, Any], *routes: Route
) -> Iterator[tuple[LiveServer, Callable[[], Line]]]:
    async def health(request: Request) -> Response:
        return JSONResponse({})

    service = Service.of(llm, config=ServerConfig(**limits))

    async def read(request: Request) -> Response:
        return JSONResponse(await read_json(request, service.config))

    mine = [Route("/health", health), Route("/read", read, methods=["POST"]), *routes]
    monkeypatch.setattr(app_module, "_routes", lambda: mine)
    lines: list[Line] = []
    with started(service) as live:

        def connect() -> Line:
            lines.append(Line(live.url))
            return lines[-1]

        try:
            yield live, connect
        finally:
            for line in lines:
                line.close()


@pytest.fixture
def serve(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`serve(*routes, **limits)`: a real server and a way to connect to it."""

    def make(*routes: Route, **limits: Any) -> Any:
        return _served(llm, monkeypatch, limits, *routes)

    return make


@pytest.mark.parametrize("start", [b"G", GET[:-2]])
def test_a_slow_head_is_answered_408(serve: Callable[..., Any], start: bytes) -> None:
    with serve(header_seconds=0.1) as (_, connect):
        answer = connect().send(start).answer()
    assert (answer.status, answer.code) == (408, "header_timeout")


def test_a_head_that_trickles_is_answered_408(serve: Callable[..., Any]) -> None:
    with serve(header_seconds=0.3) as (_, connect):
        line = connect()
        done = threading.Event()

        def trickle() -> None:
            for byte in GET[:-2] + b"a: b\r\n" * 10_000:
                if done.wait(0.02):
                    return
                try:
                    line.send(bytes([byte]))
                except OSError:
                    return

        sender = threading.Thread(target=trickle)
        sender.start()
        assert line.answer().status == 408
        done.set()
        sender.join()


def test_a_connection_that_says_nothing_is_closed(serve: Callable[..., Any]) -> None:
    with serve(header_seconds=0.1) as (_, connect):
        assert connect().all() == b""


def test_the_second_head_has_its_time_too(serve: Callable[..., Any]) -> None:
    with serve(header_seconds=0.2, idle_seconds=20) as (_, connect):
        line = connect().send(GET)
        assert line.one() == 200
        assert line.send(b"GET /hea").answer().status == 408


def test_an_idle_connection_is_closed(serve: Callable[..., Any]) -> None:
    with serve(idle_seconds=0.1, header_seconds=20) as (_, connect):
        assert connect().send(GET).answer().status == 200


def test_a_request_within_its_time_keeps_the_connection(serve: Callable[..., Any]) -> None:
    with serve(header_seconds=0.1) as (_, connect):
        line = connect()
        for _ in range(3):
            assert line.send(GET).one() == 200
            threading.Event().wait(0.15)  # longer than a head may take, but none has begun


def test_pipelined_requests_are_all_answered(serve: Callable[..., Any]) -> None:
    with serve(idle_seconds=0.2) as (_, connect):
        assert connect().send(GET * 5).all().count(b"HTTP/1.1 200") == 5


def test_a_slow_body_is_answered_408(serve: Callable[..., Any]) -> None:
    with serve(body_seconds=0.1) as (_, connect):
        answer = connect().send(POST % 100 + b"[1").answer()
    assert (answer.status, answer.code) == (408, "body_timeout")
    assert answer.headers["connection"] == "close"


def test_a_large_head_is_answered_431(serve: Callable[..., Any]) -> None:
    with serve(max_header=2048) as (_, connect):
        large = GET[:-2] + b"a: " + b"b" * 500_000
        answer = connect().send(large).answer()
    assert (answer.status, answer.code) == (431, "head_too_large")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/1.1\r\n\r\n",  # no host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\na\x00: b\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_400(serve: Callable[..., Any], data: bytes) -> None:
    with serve() as (live, connect):
        answer = connect().send(data).answer()
        assert httpx.get(f"{live.url}/health").status_code == 200
    assert (answer.status, answer.code) == (400, "invalid_http")


def test_a_body_that_breaks_is_answered_400(serve: Callable[..., Any]) -> None:
    head = POST.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")
    with serve() as (live, connect):
        answer = connect().send(head + b"2\r\n[1\r\nzz\r\n").answer()
        assert httpx.get(f"{live.url}/health").status_code == 200
    assert (answer.status, answer.code) == (400, "invalid_http")


@pytest.mark.parametrize("target", [b"CONNECT a:1", b"OPTIONS *", b"GET http://localhost/x"])
def test_odd_targets_are_no_routes(serve: Callable[..., Any], target: bytes) -> None:
    with serve(idle_seconds=0.1) as (_, connect):
        answer = connect().send(target + b" HTTP/1.1\r\nHost: localhost\r\n\r\n").answer()
    assert answer.status == 404


def test_an_upgrade_is_not_taken(serve: Callable[..., Any]) -> None:
    upgrade = GET[:-2] + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    with serve(idle_seconds=0.1) as (_, connect):
        assert connect().send(upgrade).answer().status == 200


def test_too_many_connections_are_told_so(serve: Callable[..., Any]) -> None:
    with serve(max_connections=2) as (live, connect):
        first, second = connect(), connect()
        assert first.send(GET).one() == second.send(GET).one() == 200
        answer = connect().send(GET).answer()
        assert (answer.status, answer.code) == (503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        first.close()
        while httpx.get(f"{live.url}/health").status_code != 200:
            pass  # the server has not heard yet that the first one is gone


@pytest.mark.parametrize("said", [True, False], ids=["said", "chunked"])
def test_a_client_reads_why_its_large_body_is_refused(
    serve: Callable[..., Any], said: bool
) -> None:
    body = b" " * (8 * 2**20)
    content = body if said else iter([body[:65536]] * 128)
    with serve(max_body=1000) as (live, _):
        answer = httpx.post(
            f"{live.url}/read", content=content, headers={"content-type": "application/json"}
        )
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


def test_a_client_that_does_not_read_is_cut_off(serve: Callable[..., Any]) -> None:
    ended = threading.Event()

    async def endless(request: Request) -> Response:
        async def pieces() -> Any:
            try:
                while True:
                    yield b"x" * 65536
            finally:
                ended.set()

        return ClosingStream(pieces())

    with serve(Route("/endless", endless), write_seconds=0.2) as (live, connect):
        connect().send(GET.replace(b"/health", b"/endless"))
        assert ended.wait(20)
        assert httpx.get(f"{live.url}/health").status_code == 200


def test_a_client_that_reads_slowly_is_not_cut_off(serve: Callable[..., Any]) -> None:
    size = 3 * 2**20

    async def large(request: Request) -> Response:
        return Response(b"x" * size)

    with serve(Route("/large", large), write_seconds=0.4, idle_seconds=0.1) as (_, connect):
        line = connect()
        line.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        line.send(GET.replace(b"/health", b"/large"))
        found, pause = b"", threading.Event()
        while piece := line.socket.recv(65536):
            found += piece
            pause.wait(0.02)
    assert len(_parse(found).body) == size
