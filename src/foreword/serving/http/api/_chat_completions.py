"""POST /v1/chat/completions."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from foreword.serving._records import chat_body
from foreword.serving.http._body import read_json
from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._refusals import parse
from foreword.serving.http._service import Service
from foreword.serving.http.api._answers import TIMEOUT, answer
from foreword.serving.http.api._prepare import prepare_chat
from foreword.serving.http.api._schemas import ChatRequest
from foreword.serving.http.api._schemas_answers import ChatChunk, ChatCompletion

OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "The next message of a chat",
        "answers",
        (
            Answer("The answers; with `stream`, as events that end with `[DONE]`.", ChatCompletion),
            Answer("", ChatChunk, media="text/event-stream"),
        ),
        errors=(404, 429, 504),
        parameters=(TIMEOUT,),
        body=ChatRequest,
    ),
)


def routes() -> list[Route]:
    """The route."""
    return [Route("/v1/chat/completions", _chat, methods=["POST"])]


async def _chat(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse(ChatRequest, await read_json(request, service.config))
    prepared = await prepare_chat(service, request.state.caller, body)
    return await answer(
        request,
        "chat",
        prepared,
        lambda results: chat_body(
            results[0],
            id=prepared.id,
            model=prepared.model,
            created=prepared.created,
            tokenizer=service.llm.tokenizer,
            fingerprint=prepared.fingerprint,
        ),
    )
