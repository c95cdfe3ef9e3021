"""/v1/prefixes: learned prefixes for operators, who see all of them, load and unload.

Prefixes are loaded from below one directory that the server was started with (`--prefix-dir`), and
from nowhere else: a path that leads out of it, also by a link, is refused without a look at what is
there.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword._errors import ParameterError
from foreword.engine import UnknownPrefixError
from foreword.prefixes import PrefixError
from foreword.serving._prefix_names import NAME_PATTERN
from foreword.serving.http._body import read_json
from foreword.serving.http._errors import ApiError
from foreword.serving.http._operations import Answer, Operation, Parameter
from foreword.serving.http._refusals import parse
from foreword.serving.http._service import Service
from foreword.serving.http.api._choice import short
from foreword.serving.http.batches._pages import check_query

if TYPE_CHECKING:
    from foreword.engine import PrefixInfo

_MAX_PATH = 1024
_Count = Annotated[int, Field(ge=0)]


class PrefixRequest(BaseModel):
    """What is to be loaded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=f"^{NAME_PATTERN}$", description="What requests call it.")
    path: str | None = Field(
        None,
        min_length=1,
        max_length=_MAX_PATH,
        description="Its directory, below the server's --prefix-dir. The name, if absent.",
    )
    pin: bool | None = Field(None, description="Keep it in memory and in the cache.")


class PrefixObject(BaseModel):
    """One learned prefix."""

    model_config = ConfigDict(extra="forbid")

    id: str
    object: Literal["prefix"] = "prefix"
    length: _Count = Field(description="Positions it takes.")
    position_offset: _Count = Field(description="Position of the first token behind it.")
    bytes: _Count = Field(description="Of its keys and values.")
    identity: str = Field(description="The same for prefixes of the same numbers.")
    pinned: bool
    in_memory: bool = Field(description="Whether host memory holds it; else it is read when used.")
    in_use: _Count = Field(description="Requests that stand behind it, those in line among them.")
    path: str | None = Field(description="Below --prefix-dir; null for one from elsewhere.")
    base: str = Field(description="What the model that it was made for was called.")


class PrefixList(BaseModel):
    """All of them, by name."""

    object: Literal["list"] = "list"
    data: list[PrefixObject]


class PrefixDeleted(BaseModel):
    """It may not be named any more."""

    id: str
    object: Literal["prefix"] = "prefix"
    deleted: Literal[True] = True


_NAME = Parameter("name", "path", {"type": "string", "minLength": 1})

OPERATIONS = (
    Operation(
        "get",
        "/v1/prefixes",
        "The learned prefixes",
        "prefixes",
        (Answer("All of them, by name.", PrefixList),),
        description="For operators; /v1/models lists to everybody what they may use.",
    ),
    Operation(
        "post",
        "/v1/prefixes",
        "Load a prefix",
        "prefixes",
        (Answer("It is loaded.", PrefixObject),),
        errors=(404, 409),
        body=PrefixRequest,
        description="Reads and checks all of it, while the engine goes on.",
    ),
    Operation(
        "delete",
        "/v1/prefixes/{name}",
        "Unload a prefix",
        "prefixes",
        (Answer("It may not be named any more.", PrefixDeleted),),
        errors=(404, 409),
        parameters=(
            _NAME,
            Parameter(
                "drain",
                "query",
                {"type": "string", "enum": ["true", "false"]},
                "true: answers that use it go on to their end. Else it is refused while one does.",
            ),
        ),
    ),
)


def routes() -> list[Route]:
    """The routes of this area."""
    return [
        Route("/v1/prefixes", _list, methods=["GET"]),
        Route("/v1/prefixes", _load, methods=["POST"]),
        Route("/v1/prefixes/{name}", _unload, methods=["DELETE"]),
    ]


def place(directory: Path, path: str) -> Path:
    """Where a path below the directory of prefixes leads, links followed. Touches the disk.

    Raises:
        ApiError: 403, it leads out of it; 404, nothing is there.
    """
    try:
        root = directory.resolve()
        target = (root / path).resolve()
    except (OSError, RuntimeError, ValueError):  # a circle of links, or no path at all
        raise _outside() from None
    if target == root or not target.is_relative_to(root):
        raise _outside()
    if not target.is_dir():
        raise ApiError(
            404,
            f"there is no directory {short(path)!r} below --prefix-dir",
            param="path",
            code="prefix_not_found",
        )
    return target


async def _list(request: Request) -> Response:
    check_query(request)
    service: Service = request.app.state.service
    roots = _roots(service)
    known = service.llm.prefixes
    infos = [known.get(name) for name in sorted(known)]  # one may be unloaded meanwhile
    shown = [_shown(roots, info) for info in infos if info is not None]
    return JSONResponse({"object": "list", "data": shown})


async def _load(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse(PrefixRequest, await read_json(request, service.config))
    directory = service.config.prefix_dir
    if directory is None:
        raise ApiError(
            404,
            "this server loads no prefixes: start it with --prefix-dir DIR",
            code="prefixes_off",
        )
    if body.name == service.model or body.name in service.llm.prefixes:
        raise _taken(body.name)
    path = body.path or body.name
    target = place(directory, path)
    try:
        info = await service.llm.load_prefix(body.name, target, pin=bool(body.pin))
    except PrefixError as error:
        # The way to the directory is the machine's own matter.
        said = str(error).replace(str(target), path)
        raise ApiError(400, said, param="path", code="invalid_prefix") from None
    except ParameterError:
        if body.name in service.llm.prefixes:  # somebody was faster
            raise _taken(body.name) from None
        raise
    return JSONResponse(_shown(_roots(service), info))


async def _unload(request: Request) -> Response:
    check_query(request, "drain")
    service: Service = request.app.state.service
    name = request.path_params["name"]
    drain = request.query_params.get("drain", "false")
    if drain not in ("true", "false"):
        raise ApiError(400, "drain must be true or false", param="drain", code="invalid_value")
    try:
        await service.llm.unload_prefix(name, drain=drain == "true")
    except UnknownPrefixError:
        raise ApiError(
            404,
            f"there is no prefix {short(name)!r}: GET /v1/prefixes lists them",
            param="name",
            code="prefix_not_found",
        ) from None
    except ParameterError as error:
        said = str(error).replace("drain=True", "?drain=true")
        raise ApiError(409, said, param="name", code="prefix_in_use") from None
    return JSONResponse(PrefixDeleted(id=name).model_dump())


def _shown(roots: Sequence[str], info: PrefixInfo) -> dict[str, Any]:
    # Written by hand: of thousands, checked ones would hold up everybody.
    return {
        "id": info.name,
        "object": "prefix",
        "length": info.length,
        "position_offset": info.position_offset,
        "bytes": info.nbytes,
        "identity": info.identity,
        "pinned": info.pinned,
        "in_memory": info.in_memory,
        "in_use": info.in_use,
        "path": _below(roots, info.source),
        "base": info.base,
    }


def _roots(service: Service) -> list[str]:
    """The directory of prefixes as sources may spell it, with a separator at its end."""
    directory = service.config.prefix_dir
    if directory is None:
        return []
    return [os.path.join(one, "") for one in (directory.absolute(), directory.resolve())]


def _below(roots: Sequence[str], source: Path | None) -> str | None:
    said = str(source)
    for root in roots:
        if source is not None and said.startswith(root):
            return Path(said[len(root) :]).as_posix()
    return None


def _outside() -> ApiError:
    return ApiError(
        403,
        "path leads out of the server's directory of prefixes: give one below it",
        param="path",
        code="outside_prefix_dir",
    )


def _taken(name: str) -> ApiError:
    return ApiError(
        409,
        f"{name!r} is taken: unload it first, or take another name",
        param="name",
        code="prefix_exists",
    )
