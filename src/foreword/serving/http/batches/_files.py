"""/v1/files: inputs of batches, left here by callers, and results of batches, made for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http._operations import Answer, Operation, Parameter
from foreword.serving.http._service import Service
from foreword.serving.http.batches._batch_jobs import BatchJobs
from foreword.serving.http.batches._pages import check_query, listed, page
from foreword.serving.http.batches._store import StoredFile
from foreword.serving.http.batches._upload import receive_upload

_MOST = 10_000


class FileObject(BaseModel):
    """One file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int = Field(description="Its size.")
    created_at: int = Field(description="Seconds since 1970.")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    expires_at: int | None = Field(default=None, description="Files stay until they are deleted.")


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that was."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


_ID = Parameter("file_id", "path", {"type": "string"})

OPERATIONS = (
    Operation(
        "post",
        "/v1/files",
        "Leave a file here",
        "files",
        (Answer("The file.", FileObject),),
        errors=(404, 503, 507),
        form={
            "type": "object",
            "required": ["file", "purpose"],
            "additionalProperties": False,
            "properties": {
                "file": {"type": "string", "contentMediaType": "application/octet-stream"},
                "purpose": {"const": "batch"},
            },
        },
        description="One JSON object per line, for a batch.",
    ),
    Operation(
        "get",
        "/v1/files",
        "Your files",
        "files",
        (Answer("A page of them, newest first.", FileList),),
        errors=(404, 503),
        parameters=(
            Parameter("purpose", "query", {"type": "string"}, "Only those."),
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": _MOST}),
            Parameter("after", "query", {"type": "string"}, "The last id of the page before."),
            Parameter("order", "query", {"enum": ["asc", "desc"]}),
        ),
    ),
    Operation(
        "get",
        "/v1/files/{file_id}",
        "One file",
        "files",
        (Answer("The file.", FileObject),),
        errors=(404, 503),
        parameters=(_ID,),
    ),
    Operation(
        "delete",
        "/v1/files/{file_id}",
        "Remove a file",
        "files",
        (Answer("It was.", FileDeleted),),
        errors=(404, 503),
        parameters=(_ID,),
        description="Not while it is the input of a batch that has not ended.",
    ),
    Operation(
        "get",
        "/v1/files/{file_id}/content",
        "What a file holds",
        "files",
        (Answer("Its bytes.", media="application/octet-stream"),),
        errors=(404, 503),
        parameters=(_ID,),
    ),
)


def routes() -> list[Route]:
    """The routes of this area."""
    return [
        Route("/v1/files", _create, methods=["POST"]),
        Route("/v1/files", _list, methods=["GET"]),
        Route("/v1/files/{file_id}", _get, methods=["GET"]),
        Route("/v1/files/{file_id}", _delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", _content, methods=["GET"]),
    ]


def jobs_of(request: Request) -> BatchJobs:
    """The files and batches of this server.

    Raises:
        ApiError: 404, it keeps none; 503, it does not run yet, or no longer.
    """
    service: Service = request.app.state.service
    if service.batches is not None:
        return service.batches
    if service.config.data_dir is None:
        raise ApiError(
            404,
            "this server keeps no files and batches: its operator can start it with --data DIR",
            code="files_off",
        )
    raise not_ready(service.state)


def file_object(file: StoredFile) -> dict[str, object]:
    """A file as the API shows it."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose="batch_output" if file.purpose == "batch_output" else "batch",
    ).model_dump()


async def _create(request: Request) -> Response:
    jobs = jobs_of(request)
    service: Service = request.app.state.service
    file = await receive_upload(request, jobs.store, request.state.caller, service.config)
    return JSONResponse(file_object(file))


async def _list(request: Request) -> Response:
    check_query(request, "purpose", "limit", "after", "order")
    files = jobs_of(request).store.of(request.state.caller.tenant)
    purpose = request.query_params.get("purpose")
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise ApiError(400, "order must be asc or desc", param="order")
    if order == "desc":
        files.reverse()
    files = [file for file in files if purpose is None or file.purpose == purpose]
    shown, more = page(files, request, default=_MOST, most=_MOST)
    return JSONResponse(listed([file_object(file) for file in shown], more))


async def _get(request: Request) -> Response:
    return JSONResponse(file_object(_named(request)))


async def _delete(request: Request) -> Response:
    tenant = request.state.caller.tenant
    file = await jobs_of(request).delete_file(tenant, request.path_params["file_id"])
    return JSONResponse(FileDeleted(id=file.id).model_dump())


async def _content(request: Request) -> Response:
    file = _named(request)
    # Never the caller's own name or type: a browser is to save it, not to show it.
    return _WholeFile(
        jobs_of(request).store.path(file),
        media_type="application/octet-stream",
        filename=f"{file.id}.jsonl",
        headers={"accept-ranges": "none"},
    )


class _WholeFile(FileResponse):
    """A file from its first byte to its last: ranges are left out, since their errors would not
    come in OpenAI's shape."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [item for item in scope["headers"] if item[0] not in (b"range", b"if-range")]
        try:
            await super().__call__({**scope, "headers": headers}, receive, send)
        except RuntimeError as error:
            if Path(self.path).exists():
                raise
            raise ApiError(404, "the file was deleted", code="file_not_found") from error


def _named(request: Request) -> StoredFile:
    tenant = request.state.caller.tenant
    return jobs_of(request).store.get(tenant, request.path_params["file_id"])
