"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.serving.http._operations import Answer, Operation, Parameter
from foreword.serving.http._service import Service
from foreword.serving.http.api._choice import Choice, choices, choose
from foreword.serving.http.api._schemas_answers import ModelList, ModelObject

OPERATIONS = (
    Operation(
        "get",
        "/v1/models",
        "The model, and the learned prefixes that you may use",
        "models",
        (Answer("The model first, then the prefixes by name.", ModelList),),
    ),
    Operation(
        "get",
        "/v1/models/{model:path}",
        "One model or prefix",
        "models",
        (Answer("The model or prefix.", ModelObject),),
        errors=(404,),
        parameters=(Parameter("model", "path", {"type": "string", "minLength": 1}),),
    ),
)


def routes() -> list[Route]:
    """The two routes."""
    return [
        Route("/v1/models", _list, methods=["GET"]),
        # Names of models have slashes.
        Route("/v1/models/{model:path}", _one, methods=["GET"]),
    ]


async def _list(request: Request) -> Response:
    service: Service = request.app.state.service
    data = [_model(service, choice) for choice in choices(service, request.state.caller)]
    return JSONResponse({"object": "list", "data": data})


async def _one(request: Request) -> Response:
    service: Service = request.app.state.service
    choice = choose(service, request.state.caller, request.path_params["model"])
    return JSONResponse(_model(service, choice))


def _model(service: Service, choice: Choice) -> dict[str, Any]:
    model: dict[str, Any] = {
        "id": choice.model,
        "object": "model",
        "created": service.created,
        "owned_by": "foreword",
        "max_model_len": service.llm.max_context - choice.taken,
    }
    for info in choice.prefixes:
        model.update(parent=service.model, prefix_length=info.length)
    return model
