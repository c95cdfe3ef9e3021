"""Requests to a Ray app: the lines of a batch file, and two fields more."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from foreword._errors import ParameterError
from foreword.serving._batch_lines import BatchLine, parse_line
from foreword.serving._errors import LineError

_OWN = ("tenant", "cache_salt")


def body_of(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of a request, whether it has OpenAI's envelope or not."""
    body = request.get("body", request)
    return body if isinstance(body, Mapping) else {}


def with_seed(request: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The request with a seed, its own where it brings one: asked again it answers the same."""
    body = body_of(request)
    if body.get("seed") is not None:
        return dict(request)
    return (
        {**request, "body": {**body, "seed": seed}} if "body" in request else {**body, "seed": seed}
    )


def read_request(request: Any) -> BatchLine:
    """Check a request's form.

    Args:
        request: `{"prompt": ...}` or `{"messages": [...]}` with sampling fields, greedy unless they
            say otherwise; or OpenAI's `{"url": "/v1/completions", "body": {...}}`, with OpenAI's
            defaults. `tenant` and `cache_salt`, texts, stand among the sampling fields.

    Raises:
        ParameterError: it is no request.
    """
    if not isinstance(request, Mapping):
        raise ParameterError(
            f'a request is a dict like {{"prompt": "Once"}}, this is {type(request).__name__}'
        )
    body = body_of(request)
    if "body" in request and body is not request["body"]:
        raise ParameterError("body is no JSON object: give one with the request's fields")
    for name in _OWN:
        value = body.get(name)
        if value is not None and not isinstance(value, str):
            raise ParameterError(f"{name} is {value!r}: give a text, or leave it out")
    if body.get("prefix") is not None:
        raise ParameterError(
            "prefix is not known to Ray apps, whose replicas load no learned prefixes: use "
            "`foreword serve --prefix`, or leave it out"
        )
    plain = {name: value for name, value in body.items() if name not in _OWN}
    line = {"custom_id": "-", **request, "body": plain} if "body" in request else plain
    try:
        return parse_line(json.dumps(line), 0)
    except LineError as error:
        raise ParameterError(str(error).removeprefix("line 0: ")) from None
    except (TypeError, ValueError) as error:
        raise ParameterError(f"a request is made of JSON values: {error}") from None
