"""Bodies that do not fit their model: one sentence each, with the field, the limit, the way out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from foreword._errors import ParameterError
from foreword.serving._prefix_names import MAX_JOINED
from foreword.serving.http._errors import ApiError
from foreword.serving.http.api._schemas import (
    MAX_FIELDS,
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_PROMPTS,
    Message,
)

Model = TypeVar("Model", bound=BaseModel)

_SAID = {
    "prompt": f"must be a text, a list of texts, a list of token ids, or a list of those, at most "
    f"{MAX_PROMPTS} prompts and none of them empty",
    "prefix": f"must be the name of a learned prefix, or a list of 1 to {MAX_JOINED} names",
    "stop": "must be a text or a list of up to 16 texts, none of them empty",
    "content": 'must be a text or a list of parts {"type": "text", "text": ...}',
}
"""Fields of several forms, of which the errors of each form would only confuse."""

_RULES = {
    "int_type": "be a whole number",
    "int_from_float": "be a whole number",
    "float_type": "be a number",
    "finite_number": "be a finite number",
    "bool_type": "be true or false",
    "string_type": "be a text",
    "string_unicode": "be a text without half a character in it",
    "string_too_short": "have at least {min_length} character",
    "string_too_long": "have at most {max_length} characters",
    "string_pattern_mismatch": "be a token id, written as a text",
    "list_type": "be a list",
    "too_short": "have at least {min_length} in it",
    "too_long": "have at most {max_length} in it",
    "dict_type": "be an object",
    "model_type": "be an object",
    "model_attributes_type": "be an object",
    "literal_error": "be {expected}",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
}
"""What a value must do, by pydantic's name of what it did not."""


def parse(model: type[Model], body: Any) -> Model:
    """The body as `model`.

    Raises:
        ApiError: 400, it does not fit.
    """
    _check_counts(model, body)
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _refusal(error) from None


def _check_counts(model: type[BaseModel], body: Any) -> None:
    """Refuse what is only large before every part of it is looked at, which takes seconds."""
    if not isinstance(body, dict):
        return
    if len(body) > len(model.model_fields):
        _refuse_unknown(next(name for name in body if name not in model.model_fields))
    for name, value in body.items():
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise ApiError(
                400,
                f"{name} must have at most {MAX_FIELDS} in it, got {len(value)}",
                param=name,
                code="invalid_value",
            )
    messages = body.get("messages")
    if not isinstance(messages, list):
        return
    parts = 0
    for i, message in enumerate(messages[:MAX_MESSAGES]):
        if isinstance(message, dict):
            if len(message) > len(Message.model_fields):
                name = next(name for name in message if name not in Message.model_fields)
                _refuse_unknown(f"messages[{i}].{name}")
            content = message.get("content")
            parts += len(content) if isinstance(content, list) else 0
    if parts > MAX_PARTS:
        raise ApiError(
            400,
            f"messages must have at most {MAX_PARTS} parts, got {parts}: put texts together",
            param="messages",
            code="invalid_value",
        )


def _refuse_unknown(param: str) -> NoReturn:
    short = _path([param])
    raise ApiError(
        400,
        f"{short} is not supported: leave it out of the request",
        param=short,
        code="unknown_parameter",
    )


def blamed(error: ParameterError, fields: Sequence[str]) -> ApiError:
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
    if kind == "extra_forbidden":
        _refuse_unknown(param)
    if kind == "none_required" or (kind == "too_long" and most == 0):
        return ApiError(
            400,
            f"{param} is not supported: leave it out of the request",
            param=param,
            code="unsupported_value",
        )
    rule = _RULES.get(kind)
    if kind == "string_pattern_mismatch" and param == "name":
        rule = "have up to 64 letters, digits, '.', '_' and '-', beginning with a letter or digit"
    said = rule.format(**first.get("ctx", {})) if rule else first["msg"]
    return ApiError(
        400, f"{param} must {said}, got {_short(given)}", param=param, code="invalid_value"
    )


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
        if not value:
            return "an empty one"
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    # The end of a long text is not even looked at.
    text = repr(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 60 else text[:57] + "..."
