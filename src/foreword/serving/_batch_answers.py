"""One line of a batch file: its prompt on the way in, its record on the way out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.serving._chat import render_chat
from foreword.serving._records import answer_record, chat_body, completion_body, error_record

if TYPE_CHECKING:
    from foreword.engine import Result
    from foreword.models import Tokenizer
    from foreword.serving._batch_lines import BatchLine


def line_prompt(line: BatchLine, tokenizer: Tokenizer | None) -> str | list[int]:
    """The prompt of a line; a chat is written out by the model's template.

    Raises:
        PromptError: the template refuses the messages.
    """
    if line.kind == "chat":
        return render_chat(tokenizer, cast("list[dict[str, Any]]", line.prompt))
    return cast("str | list[int]", line.prompt)


def line_answer(
    line: BatchLine, result: Result, *, model: str, tokenizer: Tokenizer | None
) -> dict[str, Any]:
    """The record of a line that was run: its answer, or the engine's error."""
    if result.error is not None:
        return line_refusal(line, ForewordError(result.error))
    make = chat_body if line.kind == "chat" else completion_body
    body = make(
        result, id=str(line.number), model=model, created=int(time.time()), tokenizer=tokenizer
    )
    return answer_record(line.number, line.custom_id, body)


def line_refusal(
    line: BatchLine, error: ForewordError, *, code: str | None = None
) -> dict[str, Any]:
    """The record of a line that cannot be answered; `code` is told from the error's type."""
    if code is None:
        code = "engine_error"
        if isinstance(error, PromptError):
            code = "invalid_prompt"
        elif isinstance(error, ParameterError):
            from foreword.engine import UnknownPrefixError

            unknown = isinstance(error, UnknownPrefixError)
            code = "prefix_not_found" if unknown else "invalid_parameter"
    return error_record(line.number, line.custom_id, code, f"line {line.number}: {error}")
