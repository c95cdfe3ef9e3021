"""POST /tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.models import Tokenizer
from foreword.serving.http._body import read_json
from foreword.serving.http._errors import ApiError
from foreword.serving.http._operations import Answer, Operation
from foreword.serving.http._refusals import parse
from foreword.serving.http._service import Service
from foreword.serving.http.api._choice import choose
from foreword.serving.http.api._schemas import DetokenizeRequest, TokenizeRequest
from foreword.serving.http.api._schemas_answers import Detokenized, Tokens
from foreword.serving.http.api._texts import render, without_delay

OPERATIONS = (
    Operation(
        "post",
        "/tokenize",
        "Token ids of a prompt or a chat",
        "tokens",
        (Answer("The ids.", Tokens),),
        errors=(404,),
        body=TokenizeRequest,
    ),
    Operation(
        "post",
        "/detokenize",
        "Text of token ids",
        "tokens",
        (Answer("The text.", Detokenized),),
        errors=(404,),
        body=DetokenizeRequest,
    ),
)


def routes() -> list[Route]:
    """The two routes."""
    return [
        Route("/tokenize", _tokenize, methods=["POST"]),
        Route("/detokenize", _detokenize, methods=["POST"]),
    ]


async def _tokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse(TokenizeRequest, await read_json(request, service.config))
    choose(service, request.state.caller, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", param="prompt", code="invalid_value")
    tokenizer = _tokenizer(service)
    special = body.add_special_tokens is not False
    messages = [message.plain() for message in body.messages or ()]

    def work() -> tuple[list[int], list[str] | None]:
        prompt: str | list[int] = body.prompt or ""
        if messages:
            prompt = render(service, messages)
        ids = prompt if isinstance(prompt, list) else _ids(tokenizer, prompt, special)
        return ids, [tokenizer.decode([i]) for i in ids] if body.return_token_strs else None

    size = len(body.prompt or "") + sum(len(message["content"]) for message in messages)
    ids, texts = await without_delay(size, work)
    return JSONResponse(
        {
            "count": len(ids),
            "max_model_len": service.llm.max_context,
            "tokens": ids,
            "token_strs": texts,
        }
    )


async def _detokenize(request: Request) -> Response:
    service: Service = request.app.state.service
    body = parse(DetokenizeRequest, await read_json(request, service.config))
    choose(service, request.state.caller, body.model)
    tokenizer = _tokenizer(service)
    vocab = len(tokenizer.inner)
    wrong = [token for token in body.tokens if token >= vocab]
    if wrong:
        raise ApiError(
            400,
            f"tokens holds {wrong[0]}: the vocabulary has ids 0 to {vocab - 1}",
            param="tokens",
            code="invalid_value",
        )
    text = await without_delay(len(body.tokens), lambda: tokenizer.decode(body.tokens))
    return JSONResponse({"prompt": text})


def _ids(tokenizer: Tokenizer, text: str, special: bool) -> list[int]:
    ids: list[int] = tokenizer.inner(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _tokenizer(service: Service) -> Tokenizer:
    tokenizer = service.llm.tokenizer
    if tokenizer is None:
        raise ApiError(
            400,
            "the model has no tokenizer: put its tokenizer files beside its weights",
            code="no_tokenizer",
        )
    return tokenizer
