"""POST /v1/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foreword.serving._records import completion_body
from foreword.serving.http._body import read_json
from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._refusals import parse
from foreword.serving.http._service import Service
from foreword.serving.http.api._answers import TIMEOUT, answer
from foreword.serving.http.api._prepare import prepare_completion
from foreword.serving.http.api._schemas import CompletionRequest
from foreword.serving.http.api._schemas_answers import Completion, CompletionChunk

OPERATIONS = (
    Operation(
        "post",
        "/v1/completions",
        "Text that goes on from prompts",
        "answers",
        (
            Answer("The answers; with `stream`, as events that end with `[DONE]`.", Completion),
            Answer("", CompletionChunk, media="text/event-stream"),
        ),
        errors=(404, 429, 504),
        parameters=(TIMEOUT,),
        body=CompletionRequest,
    ),
)


def routes() -> list[Route]:
    """The route."""
    return [Route("/v1/completions", _complete, methods=["POST"])]


async def _complete(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse(CompletionRequest, await read_json(request, service.config))
    prepared = await prepare_completion(service, request.state.caller, body)
    return await answer(
        request,
        "completion",
        prepared,
        lambda results: completion_body(
            results,
            id=prepared.id,
            model=prepared.model,
            created=prepared.created,
            tokenizer=service.llm.tokenizer,
            fingerprint=prepared.fingerprint,
            echo=prepared.echo,
        ),
    )
