"""/v1/files: inputs of batches, left here by callers, and results of batches, made for them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from foreword.serving.http._batch_jobs import BatchJobs
from foreword.serving.http._errors import ApiError
from foreword.serving.http._pages import check_query, listed, page
from foreword.serving.http._service import Service
from foreword.serving.http._store import StoredFile
from foreword.serving.http._upload import receive_upload

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
    expires_at: int | None = Field(None, description="Files stay until they are deleted.")


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


class FileUpload(BaseModel):
    """The form of an upload."""

    file: bytes = Field(description="One JSON object per line.")
    purpose: Literal["batch"]


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
    raise ApiError(
        503,
        f"the server is {service.state}: try again later",
        code="not_ready",
        headers={"Retry-After": "5"},
    )


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
    return FileResponse(
        jobs_of(request).store.path(file),
        media_type="application/octet-stream",
        filename=f"{file.id}.jsonl",
    )


def _named(request: Request) -> StoredFile:
    tenant = request.state.caller.tenant
    return jobs_of(request).store.get(tenant, request.path_params["file_id"])
