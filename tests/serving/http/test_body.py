"""JSON bodies: what is read, and what is refused with which status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from foreword.serving.http import ApiError, ServerConfig
from foreword.serving.http._body import MAX_DIGITS, parse_json, read_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES.filter(lambda v: "inf" not in repr(v).lower()))
@settings(max_examples=150, deadline=None)
def test_what_json_writes_is_read(value: Any) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    assert parse_json(text, 1000) == value
    assert parse_json(json.dumps(value).encode(), 1000) == value


@given(
    st.binary(max_size=60) | st.text('{}[]",:\\u0d8 truefalsn-1.eE', max_size=60).map(str.encode)
)
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_read_or_refused_with_400(body: bytes) -> None:
    try:
        parse_json(body, 8)
    except ApiError as refusal:
        told = (refusal.status, refusal.code)
    else:
        return
    assert told == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not JSON"),
        (b"\xff{}", "UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "float"),
        (b'{"a": ' + b"9" * (MAX_DIGITS + 1) + b"}", "digits"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'[{"a": ["\\ud83d"]}]', "surrogate"),
        (b"[" * 9 + b"]" * 9, "nested"),
        (b'{"a":' * 9 + b"1" + b"}" * 9, "nested"),
        (b"[" * 1_000_000, "nested"),
    ],
)
def test_refusals_name_their_reason(body: bytes, word: str) -> None:
    with pytest.raises(ApiError, match=word):
        parse_json(body, 8)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 8 + b"]" * 8,
        json.dumps(["[[[[[[[[[[" + '"' + "[[[[", "\\", "{{{{{{{{{{{{"]).encode(),
        b'"' + b"\\\\" * 20 + b'[[[[[[[[[[[[[[[["',
        b"[[],[],[],[],[],[],[],[],[],[],[],[]]",
        b'"\\ud83d\\ude00"',
    ],
)
def test_depth_is_counted_outside_of_texts(body: bytes) -> None:
    assert parse_json(body, 8) == json.loads(body)


def test_the_last_of_two_names_counts() -> None:
    assert parse_json(b'{"a": 1, "a": 2}', 8) == {"a": 2}


def _request(pieces: list[dict[str, Any]], headers: dict[str, str] | None = None) -> Request:
    left = list(pieces)

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    raw = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, receive)


def _piece(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def _read(request: Request, config: ServerConfig) -> Any:
    return asyncio.run(read_json(request, config))


@pytest.mark.parametrize(
    ("request_of", "status"),
    [
        (lambda: _request([], {"content-length": "11"}), 413),
        (lambda: _request([], {"content-length": "9" * 400}), 413),
        (lambda: _request([_piece(b"[1,1,1"), _piece(b",1,1]")]), 413),
        (lambda: _request([_piece(b"[1")]), 408),
    ],
    ids=["said", "said-absurd", "sent", "late"],
)
def test_limits_of_size_and_time(request_of: Callable[[], Request], status: int) -> None:
    config = ServerConfig(max_body=10, body_seconds=0.02)
    with pytest.raises(ApiError) as caught:
        _read(request_of(), config)
    assert caught.value.status == status


def test_a_body_of_the_largest_size_is_read() -> None:
    config = ServerConfig(max_body=10, body_seconds=5)
    pieces = [_piece(b"[1,1,"), _piece(b"1,11]", more=False)]
    assert _read(_request(pieces, {"content-length": "10"}), config) == [1, 1, 1, 11]


def test_a_client_that_leaves_within_its_body() -> None:
    with pytest.raises(ClientDisconnect):
        _read(_request([_piece(b"[1"), {"type": "http.disconnect"}]), ServerConfig())
