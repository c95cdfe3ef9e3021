"""How an area tells the OpenAPI document what its routes take and give.

An area exports `OPERATIONS: tuple[Operation, ...]`, one for each method of each of its routes.
Errors that every route has are added by the document: those of the edge (hosts, origins, keys,
bodies) and the 500.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

Method = Literal["get", "post", "delete"]


@dataclass(frozen=True)
class Parameter:
    """A value in the path, the query or a header.

    Attributes:
        schema: JSON schema of the value.
    """

    name: str
    where: Literal["path", "query", "header"]
    schema: Mapping[str, Any]
    description: str = ""
    required: bool = False


@dataclass(frozen=True)
class Answer:
    """A response that is no error.

    Attributes:
        description: one sentence.
        model: the body; None for one that `media` alone describes.
        media: its content type.
        schema: JSON schema of a body without a model; None for any.
        status: the HTTP status.
    """

    description: str
    model: type[BaseModel] | None = None
    media: str = "application/json"
    schema: Mapping[str, Any] | None = None
    status: int = 200


@dataclass(frozen=True)
class Operation:
    """One method of one route.

    Attributes:
        path: the route's pattern, as Starlette has it.
        summary: a few words.
        tag: the area.
        answers: what it gives; two of one status differ by their media.
        errors: statuses beside those that every route has, in OpenAI's shape: 404, 429, 503, ...
        body: the JSON body.
        form: JSON schema of a multipart form, instead of a body; files have
            `{"type": "string", "contentMediaType": "application/octet-stream"}`.
        description: more than the summary says, in Markdown.
    """

    method: Method
    path: str
    summary: str
    tag: str
    answers: tuple[Answer, ...]
    errors: tuple[int, ...] = ()
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    description: str = ""
