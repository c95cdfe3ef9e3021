"""What every request passes: ids, hosts, origins, keys, media types, errors, counts, the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine import AsyncLLM
from foreword.serving.http import ApiError, Keyring, ServerConfig, Service
from foreword.serving.http import _app as app_module
from foreword.serving.http._middleware import is_loopback
from foreword.serving.http.guard._access import GENERATING, OPEN, OPERATOR, level_of
from tests.serving.http.conftest import LOCAL

USER, OPERATOR_KEY = "user-key-0123456789", "operator-key-0123456789"


def _keys() -> Keyring:
    return Keyring.of(
        [
            {"tenant": "ann", "key": USER},
            {"tenant": "root", "key": OPERATOR_KEY, "operator": True},
        ]
    )


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


class Seen:
    """Routes that record their callers and raise what they are told to."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.error: Exception | None = None

    async def handle(self, request: Request) -> Response:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return JSONResponse({"tenant": request.state.caller.tenant})

    def routes(self) -> list[Route]:
        return [
            Route("/health", self.handle),
            Route("/metrics", self.handle),
            Route("/v1/completions", self.handle, methods=["POST"]),
            Route("/v1/files", self.handle, methods=["GET", "POST"]),
            Route("/v1/files/{id}", self.handle),
        ]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def call(
    seen: Seen, llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., TestClient]]:
    """`call(keys=..., config=...)`: a client of an application with `seen`'s routes."""

    def make(**settings: Any) -> TestClient:
        monkeypatch.setattr(app_module, "_routes", seen.routes)
        service = Service.of(llm, **settings)
        return TestClient(app_module.create_app(service), base_url=LOCAL)

    return make


def _status_without_body(app: Any) -> int:
    """The status of a completion whose client sends no byte of the body it announced."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [*headers, (b"content-length", b"9")],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert (b"connection", b"close") in sent[0]["headers"]
    status: int = sent[0]["status"]
    return status


def _service_of(client: TestClient) -> Service:
    assert isinstance(client.app, Starlette)
    service: Service = client.app.state.service
    return service


def _code(answer: Any) -> str | None:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    code: str | None = error["code"]
    return code


def test_ids_are_echoed_if_they_are_sane(call: Callable[..., TestClient], seen: Seen) -> None:
    client = call()
    assert (
        client.get("/health", headers={"x-request-id": "a-1.b_2"}).headers["x-request-id"]
        == "a-1.b_2"
    )
    for odd in ("", "a b", "x" * 129, "<script>", "a\tb"):
        made = client.get("/health", headers={"x-request-id": odd}).headers["x-request-id"]
        assert made.startswith("req_")
        assert seen.requests[-1].state.request_id == made


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/v1/completions"])
def test_headers_of_every_answer(call: Callable[..., TestClient], path: str) -> None:
    answer = call().get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-frame-options"] == "DENY"
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("listening", "allowed", "host", "status"),
    [
        ("127.0.0.1", (), "localhost:8000", 200),
        ("127.0.0.5", (), "127.0.0.5:8000", 200),
        ("localhost", (), "localhost", 200),
        ("127.0.0.1", (), "127.0.0.1:8000", 200),
        ("::1", (), "[::1]:8000", 200),
        ("127.0.0.1", (), "LOCALHOST", 200),
        ("127.0.0.1", (), "evil.example", 421),
        ("127.0.0.1", (), "localhost.evil.example", 421),
        ("127.0.0.1", (), "evil.example:localhost", 421),
        ("127.0.0.1", (), "localhost:evil.example", 421),
        ("127.0.0.1", (), "", 421),
        ("127.0.0.1", ("api.example",), "api.example:443", 200),
        ("127.0.0.1", ("api.example",), "localhost", 421),
        ("127.0.0.1", ("*",), "anything", 200),
        ("0.0.0.0", (), "anything", 200),
        ("0.0.0.0", ("api.example",), "other.example", 421),
    ],
)
def test_hosts(
    call: Callable[..., TestClient],
    listening: str,
    allowed: tuple[str, ...],
    host: str,
    status: int,
) -> None:
    client = call(config=ServerConfig(host=listening, allowed_hosts=allowed))
    assert client.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost"}, 200),
        ({"origin": "http://localhost:80"}, 200),
        ({"origin": "https://localhost"}, 200),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"}, 403),
    ],
)
def test_pages_of_other_sites(
    call: Callable[..., TestClient], headers: dict[str, str], status: int
) -> None:
    answer = call().get("/health", headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert _code(answer) == "cross_origin"


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/health", None, 200),
        ("/v1/files/a", None, 401),
        ("/v1/files/a", "wrong", 401),
        ("/v1/files/a", USER, 200),
        ("/v1/files/a", OPERATOR_KEY, 200),
        ("/metrics", None, 401),
        ("/metrics", USER, 403),
        ("/metrics", OPERATOR_KEY, 200),
        ("/nowhere", None, 401),
        ("/nowhere", USER, 404),
    ],
)
def test_keys(
    call: Callable[..., TestClient], seen: Seen, path: str, key: str | None, status: int
) -> None:
    answer = call(keys=_keys()).get(path, headers=_bearer(key) if key else {})
    assert answer.status_code == status
    assert bool(seen.requests) == (status == 200)
    if key == USER and status == 200:
        assert answer.json() == {"tenant": "ann"}


def test_without_keys_everybody_is_an_operator(call: Callable[..., TestClient]) -> None:
    assert call().get("/metrics").status_code == 200


def test_every_route_has_the_level_it_should() -> None:
    """A route that is new is for keys; this test is where another level is written down."""
    assert {level_of(p) for p in OPEN} == {"open"}
    assert {level_of(p) for p in OPERATOR} == {"operator"}
    assert not OPEN & OPERATOR
    patterns = {getattr(route, "path", "") for route in app_module._routes()}
    assert patterns >= OPEN | OPERATOR | GENERATING
    for pattern in patterns - OPEN - OPERATOR:
        assert pattern.startswith("/v1/") or pattern in ("/tokenize", "/detokenize")


def test_a_body_is_not_read_before_the_key_and_the_gate(
    call: Callable[..., TestClient], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = call(keys=_keys())
    assert _status_without_body(client.app) == 401
    checked = []

    def check(caller: Any) -> None:
        checked.append(caller.tenant)
        raise ApiError(429, "too much", code="limit", headers={"Retry-After": "7"})

    monkeypatch.setattr(_service_of(client).gate, "check", check)
    answer = client.post("/v1/completions", content=b"{}", headers=_bearer(USER))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert checked == ["ann"]
    assert client.get("/v1/files/a", headers=_bearer(USER)).status_code == 200
    assert len(checked) == 1


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_new_work_is_refused_unless_ready(call: Callable[..., TestClient], state: Any) -> None:
    client = call()
    _service_of(client).state = state
    answer = client.post("/v1/completions", json={})
    assert answer.status_code == 503
    assert _code(answer) == "not_ready"
    assert int(answer.headers["retry-after"]) > 0
    assert client.get("/v1/files").status_code == 200


@pytest.mark.parametrize(
    ("path", "headers", "content", "status"),
    [
        ("/v1/completions", {"content-type": "application/json"}, b"{}", 200),
        ("/v1/completions", {"content-type": "Application/JSON; charset=utf-8"}, b"{}", 200),
        ("/v1/completions", {"content-type": "text/plain"}, b"{}", 415),
        ("/v1/completions", {}, b"{}", 415),
        ("/v1/completions", {}, b"", 200),
        ("/v1/completions", {"content-type": "multipart/form-data; boundary=a"}, b"x", 415),
        (
            "/v1/completions",
            {"content-type": "application/json", "content-encoding": "gzip"},
            b"{}",
            415,
        ),
        ("/v1/files", {"content-type": "multipart/form-data; boundary=a"}, b"x", 200),
        ("/v1/files", {"content-type": "application/json"}, b"{}", 415),
    ],
)
def test_media_types(
    call: Callable[..., TestClient],
    path: str,
    headers: dict[str, str],
    content: bytes,
    status: int,
) -> None:
    assert call().post(path, headers=headers, content=content).status_code == status


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ApiError(418, "short", param="x", code="c", headers={"a-b": "1"}), 418, "c"),
        (PromptError("too long"), 400, "invalid_prompt"),
        (ParameterError("n is 0"), 400, "invalid_parameter"),
        (ForewordError("/secret/path"), 500, None),
        (RuntimeError("/secret/path"), 500, None),
        (MemoryError(), 500, None),
    ],
)
def test_errors_become_answers(
    call: Callable[..., TestClient],
    seen: Seen,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    status: int,
    code: str | None,
) -> None:
    seen.error = error
    answer = call().get("/health", headers={"x-request-id": "the-id"})
    assert answer.status_code == status
    assert _code(answer) == code
    assert "secret" not in answer.text
    logged = [r.getMessage() for r in caplog.records if r.name == "foreword.server"]
    assert any("the-id" in line for line in logged) == (status == 500)
    if isinstance(error, ApiError):
        assert answer.headers["a-b"] == "1"


def test_an_engine_that_ends_while_draining_is_503(
    call: Callable[..., TestClient], seen: Seen
) -> None:
    seen.error = ForewordError("the engine was closed")
    client = call()
    _service_of(client).state = "draining"
    answer = client.get("/health")
    assert (answer.status_code, _code(answer)) == (503, "not_ready")
    assert answer.headers["connection"] == "close"


def test_unknown_routes_and_methods(call: Callable[..., TestClient]) -> None:
    client = call()
    assert _code(client.get("/nowhere")) == "not_found"
    assert _code(client.get("/health/")) == "not_found"
    answer = client.get("/v1/completions")
    assert (answer.status_code, _code(answer)) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "POST"


def test_answers_are_counted_by_pattern(
    call: Callable[..., TestClient], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = call(keys=_keys())
    counted: list[tuple[Any, ...]] = []
    refused: list[tuple[Any, ...]] = []
    metrics = _service_of(client).metrics
    monkeypatch.setattr(metrics, "http", lambda *args: counted.append(args[:3]))
    monkeypatch.setattr(
        metrics, "refused", lambda caller, *args: refused.append((caller.tenant, *args))
    )
    client.get("/v1/files/secret-name", headers=_bearer(USER))
    client.get("/nowhere/secret", headers=_bearer(USER))
    client.request("BREW", "/health")
    seen.error = ApiError(503, "full", code="full")
    client.get("/v1/files", headers=_bearer(USER))
    assert counted == [
        ("/v1/files/{id}", "GET", 200),
        ("none", "GET", 404),
        ("/health", "OTHER", 405),
        ("/v1/files", "GET", 503),
    ]
    assert refused == [("ann", 503, "full")]


def test_the_log_of_requests_holds_no_secret(
    call: Callable[..., TestClient], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="foreword.server.requests")
    call(keys=_keys()).post(
        "/v1/completions?secret=1",
        json={"prompt": "secret"},
        headers={**_bearer(USER), "x-request-id": "the-id"},
    )
    (record,) = [r for r in caplog.records if r.name == "foreword.server.requests"]
    fields = record.fields  # type: ignore[attr-defined]
    assert fields.pop("ms") >= 0
    assert fields == {
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "client": "testclient",
        "tenant": "ann",
        "id": "the-id",
    }


@pytest.mark.parametrize(
    ("host", "only_here"),
    [
        ("localhost", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("127.example", False),
        ("192.168.0.1", False),
    ],
)
def test_loopback_addresses(host: str, only_here: bool) -> None:
    assert is_loopback(host) == only_here
