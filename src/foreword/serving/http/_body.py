"""Bodies of requests: read within limits of size and time, and parsed within limits of shape."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any, NoReturn

from starlette.requests import Request

from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError

MAX_DIGITS = 32
"""Longest whole number in a body; a longer one fits nothing, and costs time to convert."""


async def read_json(request: Request, config: ServerConfig) -> Any:
    """The value of a JSON body; of a name that is given twice the last counts.

    Raises:
        ApiError: 413 the body is larger than `max_body`; 408 it did not come in `body_seconds`;
            400 it is not UTF-8, not JSON (NaN and Infinity are not), nested deeper than
            `max_json_depth`, holds a number beyond all bounds or half a character.
        ClientDisconnect: the client left before the end.
    """
    return parse_json(await read_body(request, config), config.max_json_depth)


async def read_body(request: Request, config: ServerConfig) -> bytes:
    """The whole body.

    Raises:
        ApiError: 413 or 408, as `read_json`.
        ClientDisconnect: as `read_json`.
    """
    limit = config.max_body
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and (len(said) > 18 or int(said) > limit):
        raise _too_large(limit)
    try:
        return await asyncio.wait_for(_collect(request, limit), config.body_seconds)
    except asyncio.TimeoutError:
        raise ApiError(
            408,
            f"the body did not come within {config.body_seconds:g} seconds: send it faster, or "
            "send less",
            code="body_timeout",
        ) from None


async def _collect(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > limit:
            raise _too_large(limit)
    return bytes(body)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limit} bytes: send less at a time, or raise --max-body",
        code="body_too_large",
    )


def parse_json(body: bytes, max_depth: int) -> Any:
    """The value of a JSON text, as `read_json`; O(length).

    Raises:
        ApiError: 400, it is none, or beyond a limit.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad(f"the body is not UTF-8 (byte {error.start}): encode it as UTF-8") from None
    if not text.strip():
        raise _bad("the body is empty: send a JSON object")
    _check_depth(text, max_depth)
    try:
        value = json.loads(
            text, parse_int=_whole, parse_float=_real, parse_constant=_refuse_constant
        )
    except json.JSONDecodeError as error:
        raise _bad(
            f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except (RecursionError, ValueError):
        raise _bad("the body is not JSON that can be used") from None
    # Escapes can write half a character (a lone surrogate); a text without escapes has none.
    if "\\u" in text and not _encodable(value):
        raise _bad("the body holds half a character (a lone surrogate): remove it")
    return value


def _check_depth(text: str, limit: int) -> None:
    """Count brackets outside of strings before the parser, which recurses, meets them."""
    # Nothing to do for nearly every body: there are not enough brackets to nest so deep.
    if text.count("[") + text.count("{") <= limit:
        return
    depth, at, end = 0, 0, len(text)
    while at < end:
        char = text[at]
        if char == '"':
            at = _string_end(text, at + 1)
            continue
        if char in "[{":
            depth += 1
            if depth > limit:
                raise _bad(f"the body is nested deeper than {limit} levels: flatten it")
        elif char in "]}":
            depth -= 1
        at += 1


def _string_end(text: str, at: int) -> int:
    """The place behind the string that `at` is in; the text's end if it does not close."""
    while True:
        close = text.find('"', at)
        if close < 0:
            return len(text)
        first = close
        while first > at and text[first - 1] == "\\":
            first -= 1
        at = close + 1
        if (close - first) % 2 == 0:
            return at


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise _bad(f"the body holds a whole number of {len(digits)} digits: no field takes it")
    return int(digits)


def _real(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _bad("the body holds a number too large for a float: no field takes it")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise _bad(f"the body holds {name}, which JSON does not have: leave the field out")


def _encodable(value: Any) -> bool:
    """Whether every text in a JSON value, names included, can be written as UTF-8."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                return False
        elif isinstance(item, dict):
            left.extend(item)
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
    return True


def _bad(message: str) -> ApiError:
    return ApiError(400, message, code="invalid_json")
