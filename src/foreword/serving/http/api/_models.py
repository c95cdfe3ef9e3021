"""GET /v1/models and /v1/models/{model}."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from foreword.serving.http._operations import Answer, Operation, Parameter
from foreword.serving.http._service import Service
from foreword.serving.http.api._prepare import check_model
from foreword.serving.http.api._schemas_answers import ModelList, ModelObject

OPERATIONS = (
    Operation("get", "/v1/models", "The models", "models", (Answer("One.", ModelList),)),
    Operation(
        "get",
        "/v1/models/{model:path}",
        "One model",
        "models",
        (Answer("The model.", ModelObject),),
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
    return JSONResponse({"object": "list", "data": [_model(request.app.state.service)]})


async def _one(request: Request) -> Response:
    service: Service = request.app.state.service
    check_model(service, request.path_params["model"])
    return JSONResponse(_model(service))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model,
        "object": "model",
        "created": service.created,
        "owned_by": "foreword",
        "max_model_len": service.llm.max_context,
    }
