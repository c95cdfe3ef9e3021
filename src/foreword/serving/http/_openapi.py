"""GET /openapi.json: what every route takes and gives, made of what the areas say of themselves.

The shape that areas use is in `_operations`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword import __version__
from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._service import Service
from foreword.serving.http.api import (
    _chat_completions,
    _completions,
    _models,
    _prefixes,
    _tokens,
)
from foreword.serving.http.api._schemas_answers import ErrorBody
from foreword.serving.http.batches import _batches, _files
from foreword.serving.http.guard import _access as access
from foreword.serving.http.live import _live
from foreword.serving.http.watch import _metrics_route, _status

OPERATIONS = (
    Operation(
        "get",
        "/openapi.json",
        "This document",
        "server",
        (Answer("An OpenAPI 3.1 document.", schema={"type": "object"}),),
    ),
)

_REFERENCE = "#/components/schemas/{model}"
_EVERYWHERE = (403, 415, 421, 500, 503)
_WITH_BODY = (400, 408, 413)
_SAID = {
    400: "The request is malformed; `param` names the field.",
    401: "The key is missing or unknown.",
    403: "The caller may not do this, or is a page of another site.",
    404: "There is no such thing, or it is somebody else's.",
    408: "The body did not come in time.",
    409: "Not in this state.",
    413: "The body is too large.",
    415: "The body is of another media type, or compressed.",
    421: "The server does not answer for this host name.",
    429: "The caller is over a limit of its own.",
    500: "The server failed; its log has the reason under `x-request-id`.",
    503: "The server is full, starting or going down.",
    504: "The answer was not complete in time.",
    507: "There is no room left to keep it.",
}
_WAITS = (429, 503)


def routes() -> list[Route]:
    """The route."""
    return [Route("/openapi.json", _openapi, methods=["GET"])]


async def _openapi(request: Request) -> Response:
    state = request.app.state
    if not hasattr(state, "openapi"):
        state.openapi = document(state.service, operations())
    return JSONResponse(state.openapi)


def operations() -> list[Operation]:
    """What every area says of its routes."""
    areas = (
        _completions,
        _chat_completions,
        _models,
        _tokens,
        _prefixes,
        _files,
        _batches,
        _live,
        _metrics_route,
        _status,
    )
    return [one for area in areas for one in area.OPERATIONS] + list(OPERATIONS)


def document(service: Service, operations: Iterable[Operation]) -> dict[str, Any]:
    """The OpenAPI document of a server with these operations."""
    many = list(operations)
    models: dict[type[BaseModel], None] = {ErrorBody: None}
    for operation in many:
        models.update((model, None) for model in _models_of(operation))
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE
    )
    keyed = not service.keys.empty
    paths: dict[str, dict[str, Any]] = {}
    for operation in many:
        path = re.sub(r":[a-z]+}", "}", operation.path)
        paths.setdefault(path, {})[operation.method] = _operation(operation, keyed)
    components: dict[str, Any] = {
        "schemas": schemas["$defs"],
        "responses": {f"Error{status}": _error(status) for status in _SAID},
        "headers": {
            "RequestId": {
                "description": "Names the request in the server's log; the caller's own if given.",
                "schema": {"type": "string"},
            },
            "RetryAfter": {
                "description": "Seconds to wait before the next attempt.",
                "schema": {"type": "string", "pattern": "^[0-9]+$"},
            },
        },
    }
    if keyed:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Foreword",
            "version": __version__,
            "description": f"OpenAI's API over {service.model}, which shares prefixes of prompts.",
        },
        "paths": paths,
        "components": components,
    }


def _models_of(operation: Operation) -> Iterable[type[BaseModel]]:
    if operation.body is not None:
        yield operation.body
    for answer in operation.answers:
        if answer.model is not None:
            yield answer.model


def _operation(operation: Operation, keyed: bool) -> dict[str, Any]:
    level = access.level_of(operation.path)
    closed = keyed and level != "open"
    errors = {*_EVERYWHERE, *operation.errors}
    said: dict[str, Any] = {
        "operationId": _identity(operation),
        "summary": operation.summary,
        "tags": [operation.tag],
        "security": [{"key": []}] if closed else [],
    }
    if operation.description:
        said["description"] = operation.description
    if operation.parameters:
        errors.add(400)
        said["parameters"] = [
            {
                "name": parameter.name,
                "in": parameter.where,
                "required": parameter.required or parameter.where == "path",
                "description": parameter.description,
                "schema": dict(parameter.schema),
            }
            for parameter in operation.parameters
        ]
    if operation.body is not None or operation.form is not None:
        errors.update(_WITH_BODY)
        media = "application/json" if operation.body else "multipart/form-data"
        schema = _reference(operation.body) if operation.body else dict(operation.form or {})
        said["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    if closed:
        errors.add(401)
    said["responses"] = {
        **_answers(operation.answers),
        **{
            str(status): {"$ref": f"#/components/responses/Error{status}"}
            for status in sorted(errors)
        },
    }
    return said


def _answers(answers: Iterable[Answer]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for answer in answers:
        response = found.setdefault(
            str(answer.status),
            {
                "description": answer.description,
                "headers": {"x-request-id": {"$ref": "#/components/headers/RequestId"}},
                "content": {},
            },
        )
        if answer.media == "text/event-stream" and answer.model is not None:
            content: dict[str, Any] = {"schema": _event(answer.model)}
        elif answer.model is not None:
            content = {"schema": _reference(answer.model)}
        else:
            content = {} if answer.schema is None else {"schema": dict(answer.schema)}
        response["content"][answer.media] = content
    return found


def _event(model: type[BaseModel]) -> dict[str, Any]:
    """An event of a stream of OpenAI's. OpenAPI 3.1 has no word for streams; where tools know
    them, the schema is each event's."""
    value = {"anyOf": [_reference(model), _reference(ErrorBody)]}
    data = {
        "type": "string",
        "anyOf": [
            {"const": "[DONE]"},
            {"contentMediaType": "application/json", "contentSchema": value},
        ],
    }
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _error(status: int) -> Mapping[str, Any]:
    headers = {"x-request-id": {"$ref": "#/components/headers/RequestId"}}
    if status in _WAITS:
        headers["retry-after"] = {"$ref": "#/components/headers/RetryAfter"}
    return {
        "description": _SAID[status],
        "headers": headers,
        "content": {"application/json": {"schema": _reference(ErrorBody)}},
    }


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def _identity(operation: Operation) -> str:
    words = re.findall(r"[A-Za-z0-9]+", operation.path.removeprefix("/v1"))
    return "_".join([operation.method, *words])
