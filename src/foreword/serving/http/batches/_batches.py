"""/v1/batches: files of requests that are answered when there is room for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.serving.http._body import read_json
from foreword.serving.http._operations import Answer, Operation, Parameter
from foreword.serving.http._refusals import parse
from foreword.serving.http.batches._batch_jobs import WINDOW, BatchJobs
from foreword.serving.http.batches._batch_state import Batch, Status
from foreword.serving.http.batches._files import jobs_of
from foreword.serving.http.batches._pages import check_query, listed, page

_Key = Annotated[str, StringConstraints(max_length=64)]
_Value = Annotated[str, StringConstraints(max_length=512)]


class BatchRequest(BaseModel):
    """What a batch is made of."""

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str = Field(max_length=128, description="An uploaded file of requests.")
    endpoint: Literal["/v1/completions", "/v1/chat/completions"]
    completion_window: Literal["24h"] = WINDOW
    metadata: Annotated[dict[_Key, _Value], Field(max_length=16)] | None = None


class RequestCounts(BaseModel):
    """Lines of the input file."""

    total: int
    completed: int = Field(description="With an answer.")
    failed: int = Field(description="With an error.")


class BatchError(BaseModel):
    """Why a batch failed, or why it does not go on at the moment."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class InputDetails(BaseModel):
    """Of the prompt tokens."""

    cached_tokens: int = Field(description="Found in the cache.")


class OutputDetails(BaseModel):
    """Of the answers' tokens."""

    reasoning_tokens: int = 0


class BatchUsage(BaseModel):
    """Tokens of all answers."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(BaseModel):
    """One batch. Moments in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None = Field(description="Answers, once it has ended.")
    error_file_id: str | None = Field(description="Errors, once it has ended.")
    created_at: int
    expires_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    usage: BatchUsage | None
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


_ID = Parameter("batch_id", "path", {"type": "string"})
_ONE = (Answer("The batch.", BatchObject),)

OPERATIONS = (
    Operation(
        "post",
        "/v1/batches",
        "Make a batch",
        "batches",
        _ONE,
        errors=(404, 429, 503, 507),
        body=BatchRequest,
        description="Its requests are answered when the server has room for them.",
    ),
    Operation(
        "get",
        "/v1/batches",
        "Your batches",
        "batches",
        (Answer("A page of them, newest first.", BatchList),),
        errors=(404, 503),
        parameters=(
            Parameter("limit", "query", {"type": "integer", "minimum": 1, "maximum": 100}),
            Parameter("after", "query", {"type": "string"}, "The last id of the page before."),
        ),
    ),
    Operation(
        "get",
        "/v1/batches/{batch_id}",
        "One batch",
        "batches",
        _ONE,
        errors=(404, 503),
        parameters=(_ID,),
    ),
    Operation(
        "post",
        "/v1/batches/{batch_id}/cancel",
        "Cancel a batch",
        "batches",
        _ONE,
        errors=(404, 503, 507),
        parameters=(_ID,),
        description="What is answered by then becomes its files.",
    ),
)


def routes() -> list[Route]:
    """The routes of this area."""
    return [
        Route("/v1/batches", _create, methods=["POST"]),
        Route("/v1/batches", _list, methods=["GET"]),
        Route("/v1/batches/{batch_id}", _get, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", _cancel, methods=["POST"]),
    ]


def batch_object(jobs: BatchJobs, batch: Batch) -> dict[str, Any]:
    """A batch as the API shows it."""
    completed, failed = jobs.counts(batch)
    errors = [BatchError(**error) for error in jobs.errors(batch)]
    shown = BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.completion_window,
        status=batch.status,
        # They are chosen before they are written: until the end nothing is behind them.
        output_file_id=batch.output_file_id if batch.ended else None,
        error_file_id=batch.error_file_id if batch.ended else None,
        created_at=batch.created_at,
        expires_at=batch.expires_at,
        request_counts=RequestCounts(total=batch.total, completed=completed, failed=failed),
        usage=_usage(batch),
        metadata=None if batch.metadata is None else dict(batch.metadata),
    )
    return {**shown.model_dump(), **batch.moments}


def _usage(batch: Batch) -> BatchUsage | None:
    if batch.usage is None:
        return None
    read, written = batch.usage["prompt_tokens"], batch.usage["completion_tokens"]
    return BatchUsage(
        input_tokens=read,
        input_tokens_details=InputDetails(cached_tokens=batch.usage["cached_tokens"]),
        output_tokens=written,
        output_tokens_details=OutputDetails(),
        total_tokens=read + written,
    )


async def _create(request: Request) -> Response:
    jobs = jobs_of(request)
    value = await read_json(request, request.app.state.service.config)
    wanted = parse(BatchRequest, value)
    batch = await jobs.create(
        request.state.caller.tenant,
        endpoint=wanted.endpoint,
        input_file_id=wanted.input_file_id,
        metadata=wanted.metadata,
    )
    return JSONResponse(batch_object(jobs, batch))


async def _list(request: Request) -> Response:
    check_query(request, "limit", "after")
    jobs = jobs_of(request)
    batches = jobs.of(request.state.caller.tenant)[::-1]
    shown, more = page(batches, request, default=20, most=100)
    return JSONResponse(listed([batch_object(jobs, batch) for batch in shown], more))


async def _get(request: Request) -> Response:
    jobs = jobs_of(request)
    batch = jobs.get(request.state.caller.tenant, request.path_params["batch_id"])
    return JSONResponse(batch_object(jobs, batch))


async def _cancel(request: Request) -> Response:
    jobs = jobs_of(request)
    batch = await jobs.cancel(request.state.caller.tenant, request.path_params["batch_id"])
    return JSONResponse(batch_object(jobs, batch))
