"""Answers in OpenAI's shapes: completion objects, chat completion objects, batch records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foreword.engine import Output, Result, TokenLogprob

_REASONS = {"stop": "stop", "length": "length"}


def completion_body(result: Result, *, id: str, model: str, created: int) -> dict[str, Any]:
    """The body of an answer to /v1/completions; `created` in seconds since 1970."""
    choices = [
        {
            "index": output.index,
            "text": output.text,
            "finish_reason": _reason(output),
            "logprobs": _completion_logprobs(output.logprobs),
        }
        for output in result.outputs
    ]
    return _body("text_completion", result, choices, id=f"cmpl-{id}", model=model, created=created)


def chat_body(result: Result, *, id: str, model: str, created: int) -> dict[str, Any]:
    """The body of an answer to /v1/chat/completions; `created` in seconds since 1970."""
    choices = [
        {
            "index": output.index,
            "message": {"role": "assistant", "content": output.text},
            "finish_reason": _reason(output),
            "logprobs": _chat_logprobs(output.logprobs),
        }
        for output in result.outputs
    ]
    kind = "chat.completion"
    return _body(kind, result, choices, id=f"chatcmpl-{id}", model=model, created=created)


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


def _reason(output: Output) -> str:
    return _REASONS.get(output.finish_reason, output.finish_reason)


def _body(
    kind: str,
    result: Result,
    choices: list[dict[str, Any]],
    *,
    id: str,
    model: str,
    created: int,
) -> dict[str, Any]:
    generated = sum(len(output.token_ids) for output in result.outputs)
    return {
        "id": id,
        "object": kind,
        "created": created,
        "model": model,
        "choices": choices,
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": result.prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": result.cached_tokens},
        },
    }


def _completion_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    offsets, at = [], 0
    for entry in logprobs:
        offsets.append(at)
        at += len(entry.token)
    entries = [entry.to_dict() for entry in logprobs]
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{t["token"]: t["logprob"] for t in entry["top"]} for entry in entries],
        "text_offset": offsets,
    }


def _chat_logprobs(logprobs: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    content = []
    for entry in (entry.to_dict() for entry in logprobs):
        top = [_chat_token(alternative) for alternative in entry["top"]]
        content.append({**_chat_token(entry), "top_logprobs": top})
    return {"content": content}


def _chat_token(entry: dict[str, Any]) -> dict[str, Any]:
    token = entry["token"]
    bytes_ = list(token.encode("utf-8"))
    return {"token": token, "logprob": entry["logprob"], "bytes": bytes_}
