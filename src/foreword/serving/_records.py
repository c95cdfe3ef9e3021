"""Answers in OpenAI's shapes: completion objects, chat completion objects, batch records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foreword.serving._logprobs import CompletionLogprobs, chat_logprobs, joined

if TYPE_CHECKING:
    from foreword.engine import Output, Result
    from foreword.models import Tokenizer


def completion_body(
    results: Result | Sequence[Result],
    *,
    id: str,
    model: str,
    created: int,
    tokenizer: Tokenizer | None = None,
    fingerprint: str | None = None,
    echo: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The body of an answer to /v1/completions; `created` in seconds since 1970.

    Choices are numbered through: all answers to the first prompt, then those to the second.

    Args:
        tokenizer: makes `text_offset` right where characters are split between tokens.
        fingerprint: of the model and what runs it.
        echo: each prompt's text, to be put in front of its answers, and its log-probabilities in
            front of theirs.
    """
    many = _many(results)
    choices: list[dict[str, Any]] = []
    for place, result in enumerate(many):
        for output in result.outputs:
            before = None if echo is None else echo[place]
            choices.append(
                {
                    "index": len(choices),
                    "text": (before or "") + output.text,
                    "finish_reason": output.finish_reason,
                    "logprobs": _completion_logprobs(result, output, tokenizer, before),
                }
            )
    kind = "text_completion"
    return _body(kind, many, choices, f"cmpl-{id}", model, created, fingerprint)


def chat_body(
    result: Result,
    *,
    id: str,
    model: str,
    created: int,
    tokenizer: Tokenizer | None = None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """The body of an answer to /v1/chat/completions; `created` in seconds since 1970.

    `tokenizer` makes the `bytes` of log-probabilities right where characters are split between
    tokens; `fingerprint` is of the model and what runs it.
    """
    choices = [
        {
            "index": output.index,
            "message": {"role": "assistant", "content": output.text, "refusal": None},
            "finish_reason": output.finish_reason,
            "logprobs": None
            if output.logprobs is None
            else chat_logprobs(output.logprobs, tokenizer),
        }
        for output in result.outputs
    ]
    kind = "chat.completion"
    return _body(kind, (result,), choices, f"chatcmpl-{id}", model, created, fingerprint)


def usage_body(
    prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
) -> dict[str, Any]:
    """OpenAI's `usage`; `cached_tokens`, a part of `prompt_tokens`, is left out while unknown."""
    body: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens is not None:
        body["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return body


def answer_record(line: int, custom_id: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """The batch record of a line that was answered."""
    return {
        "id": _record_id(line),
        "custom_id": custom_id,
        "line": line,
        "response": {"status_code": 200, "request_id": f"req_{line}", "body": body},
        "error": None,
    }


def error_record(line: int, custom_id: str | None, code: str, message: str) -> dict[str, Any]:
    """The batch record of a line that could not be answered."""
    return {
        "id": _record_id(line),
        "custom_id": custom_id,
        "line": line,
        "response": None,
        "error": {"code": code, "message": message},
    }


def _record_id(line: int) -> str:
    return f"batch_req_{line}"


def _many(results: Result | Sequence[Result]) -> Sequence[Result]:
    return results if isinstance(results, Sequence) else (results,)


def _body(
    kind: str,
    results: Sequence[Result],
    choices: list[dict[str, Any]],
    id: str,
    model: str,
    created: int,
    fingerprint: str | None,
) -> dict[str, Any]:
    body = {
        "id": id,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": usage_body(
            sum(result.prompt_tokens for result in results),
            sum(len(output.token_ids) for result in results for output in result.outputs),
            sum(result.cached_tokens for result in results),
        ),
    }
    return body if fingerprint is None else {**body, "system_fingerprint": fingerprint}


def _completion_logprobs(
    result: Result, output: Output, tokenizer: Tokenizer | None, before: str | None
) -> dict[str, Any] | None:
    """Those of the answer, after those of its prompt where that is shown."""
    if output.logprobs is None:
        return None
    own = CompletionLogprobs(tokenizer, len(before or "")).take(output.logprobs)
    if before is None or result.prompt_logprobs is None:
        return own
    return joined(CompletionLogprobs(tokenizer).take(result.prompt_logprobs), own)
