"""Bodies that do not fit their model: one sentence each, with the field, the limit, the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from foreword.serving.http._errors import ApiError
from foreword.serving.http._schemas import MAX_PROMPTS

Model = TypeVar("Model", bound=BaseModel)

_SAID = {
    "prompt": f"must be a text, a list of texts, a list of token ids, or a list of those, at most "
    f"{MAX_PROMPTS} prompts and none of them empty",
    "stop": "must be a text or a list of up to 16 texts, none of them empty",
    "content": 'must be a text or a list of parts {"type": "text", "text": ...}',
}
"""Fields of several forms, of which the errors of each form would only confuse."""

_UNSUPPORTED = ("extra_forbidden", "none_required")


def parse(model: type[Model], body: Any) -> Model:
    """The body as `model`.

    Raises:
        ApiError: 400, it does not fit.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def blamed(error: Exception, fields: Sequence[str]) -> ApiError:
    """An engine's complaint about a parameter; its messages begin with the field's name."""
    word = str(error).split(maxsplit=1)[0].partition("=")[0]
    return ApiError(400, str(error), param=word if word in fields else None, code="invalid_value")


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors(include_url=False, include_context=True)[0]
    kind, place = first["type"], first["loc"]
    given = first["input"]
    if not place:
        return ApiError(400, "the body must be a JSON object", code="invalid_type")
    for depth, name in enumerate(place):
        if name in _SAID and not isinstance(place[0], int):
            param = _path(place[: depth + 1])
            if kind == "missing" and len(place) == depth + 1:
                break
            return ApiError(400, f"{param} {_SAID[str(name)]}", param=param, code="invalid_value")
    param = _path(place)
    if kind == "missing":
        return ApiError(
            400,
            f"{param} is missing: give one",
            param=param,
            code="missing_required_parameter",
        )
    most = first.get("ctx", {}).get("max_length")
    if kind in _UNSUPPORTED or (kind == "too_long" and most == 0):
        code = "unknown_parameter" if kind == "extra_forbidden" else "unsupported_value"
        return ApiError(
            400,
            f"{param} is not supported: leave it out of the request",
            param=param,
            code=code,
        )
    rule = first["msg"].removeprefix("Input should ").removeprefix("be ")
    if rule == first["msg"]:
        said = f"{param}: {rule[:1].lower()}{rule[1:]}"
    else:
        said = f"{param} must be {rule}" if not rule.startswith("have") else f"{param} must {rule}"
    return ApiError(400, f"{said}, got {_short(given)}", param=param, code="invalid_value")


def _path(place: Sequence[str | int]) -> str:
    """A place in a body as people write it: messages[0].role."""
    text = ""
    for name in place:
        if isinstance(name, int):
            text += f"[{name}]"
        elif name == "[key]":
            continue
        else:
            short = name if len(name) <= 60 else name[:57] + "..."
            text += f".{short}" if text else short
    return text


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    # The end of a long text is not even looked at.
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."
