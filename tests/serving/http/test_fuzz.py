"""Broken requests: only errors of the caller's, and the server serves after them."""

from __future__ import annotations

import socket
from itertools import islice
from urllib.parse import urlsplit

import pytest

from benchmarks.server.malformed import Malformed, malformed
from foreword.serving.http import ServerConfig

GOOD = {"prompt": "Once upon a time", "max_tokens": 3, "temperature": 0}


def send(client, one: Malformed):
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in one.headers]
    return client.request(one.method, one.target, headers=headers, content=one.body)


def check_in_process(client, seed, count):
    for one in islice(malformed(seed, raw=False), count):
        response = send(client, one)
        assert 400 <= response.status_code < 500, (one, response.text)
        if one.method not in ("HEAD", "OPTIONS"):
            error = response.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, one
            assert error["message"]
    answer = client.post("/v1/completions", json=GOOD)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 3


def status_of(address, data: bytes) -> int | None:
    """The status of what comes back; None for a connection closed without an answer."""
    with socket.create_connection(address, timeout=30) as link:
        try:
            link.sendall(data)
            head = link.recv(65536)
        except ConnectionError:
            return None
    return int(head.split()[1]) if head else None


def check_over_sockets(live, seed, count):
    parts = urlsplit(live.url)
    address = (parts.hostname, parts.port)
    seen = 0
    for one in islice((one for one in malformed(seed) if one.raw is not None), count):
        status = status_of(address, one.wire())
        assert status is None or 400 <= status < 500, (one.label, status)
        seen += status is not None
    assert seen > count / 2, "most broken requests deserve an answer"
    body = b'{"prompt": "Once", "max_tokens": 2}'
    good = Malformed("good", body=body)
    assert status_of(address, good.wire()) == 200


def test_broken_requests_get_errors_of_the_callers(client):
    check_in_process(client, seed=1, count=400)


def test_broken_http_gets_an_error_or_a_closed_connection(make_service, start_server):
    live = start_server(make_service(config=ServerConfig(header_seconds=1, body_seconds=1)))
    check_over_sockets(live, seed=2, count=60)


def test_the_generator_repeats_itself_and_varies():
    first = list(islice(malformed(3), 300))
    assert first == list(islice(malformed(3), 300))
    assert len({one.label for one in first}) > 40
    assert any(one.raw is not None for one in first)


@pytest.mark.slow
def test_thousands_of_broken_requests(client, make_service, start_server):
    check_in_process(client, seed=4, count=10_000)
    live = start_server(make_service(config=ServerConfig(header_seconds=1, body_seconds=1)))
    check_over_sockets(live, seed=5, count=1_000)
