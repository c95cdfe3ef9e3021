"""Answers as they come: the engine's chunks and results as OpenAI's stream objects."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any, Literal

from foreword.engine import Chunk, Result
from foreword.models import Tokenizer
from foreword.serving._logprobs import CompletionLogprobs, chat_logprobs
from foreword.serving._records import usage_body
from foreword.serving.http._errors import ApiError
from foreword.serving.http.api._prepare import Prepared

Kind = Literal["completion", "chat"]
_OBJECTS = {"completion": "text_completion", "chat": "chat.completion.chunk"}
_IDS = {"completion": "cmpl-", "chat": "chatcmpl-"}


def failed(result: Result) -> ApiError:
    """The error of a request one of whose prompts the engine could not answer."""
    return ApiError(500, f"prompt {result.index} could not be answered: {result.error}")


async def stream_objects(
    kind: Kind,
    prepared: Prepared,
    events: AsyncGenerator[Chunk | Result, None],
    tokenizer: Tokenizer | None,
) -> AsyncGenerator[dict[str, Any], None]:
    """The objects of one stream in order; closing it closes `events`.

    Raises:
        ApiError: 500, a prompt could not be answered; and what `events` raises.
    """
    writer = _Chat(prepared, tokenizer) if kind == "chat" else _Completion(prepared, tokenizer)
    count = _Count(prepared)
    head = {
        "id": _IDS[kind] + prepared.id,
        "object": _OBJECTS[kind],
        "created": prepared.created,
        "model": prepared.model,
        "system_fingerprint": prepared.fingerprint,
    }
    async with aclosing(events):
        async for item in events:
            if isinstance(item, Result):
                if item.error is not None:
                    raise failed(item)
                count.ended(item)
                choices = writer.result(item)
            else:
                count.wrote(item)
                choices = writer.chunk(item)
            for choice in choices:
                piece = {**head, "choices": [choice]}
                if prepared.include_usage:
                    piece["usage"] = count.usage() if prepared.continuous_usage else None
                yield piece
    if prepared.include_usage:
        yield {**head, "choices": [], "usage": count.usage()}


class _Count:
    """Tokens so far."""

    def __init__(self, prepared: Prepared) -> None:
        self._prompt = prepared.job.prompt_tokens
        self._written = 0
        self._cached = 0
        self._open = len(prepared.job.prompts)

    def wrote(self, chunk: Chunk) -> None:
        self._written += len(chunk.token_ids)

    def ended(self, result: Result) -> None:
        self._cached += result.cached_tokens
        self._open -= 1

    def usage(self) -> dict[str, Any]:
        return usage_body(self._prompt, self._written, None if self._open else self._cached)


class _Completion:
    """Choices of /v1/completions."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer | None) -> None:
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._n = prepared.job.params[0].n
        params = prepared.job.params[0]
        self._asked = params.logprobs is not None
        # The prompt's log-probabilities come with the result, and belong in front.
        self._held: dict[int, list[Chunk]] | None = (
            {} if prepared.echo is not None and self._asked else None
        )
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._ended: set[int] = set()

    def chunk(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if self._held is not None:
            self._held.setdefault(chunk.index, []).append(chunk)
            return
        yield from self._shown(chunk)

    def result(self, result: Result) -> Iterator[dict[str, Any]]:
        if self._held is not None:
            for output in result.outputs:
                place = result.index * self._n + output.index
                before = self._before(result.index)
                logprobs = None
                if result.prompt_logprobs is not None:
                    logprobs = CompletionLogprobs(self._tokenizer).take(result.prompt_logprobs)
                self._logprobs[place] = CompletionLogprobs(self._tokenizer, len(before))
                yield self._choice(place, before, logprobs, None)
            for chunk in self._held.pop(result.index, ()):
                yield from self._shown(chunk)
        for output in result.outputs:
            place = result.index * self._n + output.index
            if place not in self._ended:  # it had no token, so no chunk has said so
                before = self._before(result.index) if place not in self._logprobs else ""
                yield self._choice(place, before, None, output.finish_reason)

    def _shown(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        if chunk.finish_reason in ("error", "abort"):
            return
        place = chunk.index * self._n + chunk.output_index
        text = chunk.text
        if place not in self._logprobs:
            before = self._before(chunk.index)
            self._logprobs[place] = CompletionLogprobs(self._tokenizer, len(before))
            text = before + text
        logprobs = None
        if chunk.logprobs is not None:
            logprobs = self._logprobs[place].take(chunk.logprobs)
        if chunk.finish_reason is not None:
            self._ended.add(place)
        if text or logprobs or chunk.finish_reason:
            yield self._choice(place, text, logprobs, chunk.finish_reason)

    def _before(self, prompt: int) -> str:
        return "" if self._prepared.echo is None else self._prepared.echo[prompt]

    def _choice(
        self, place: int, text: str, logprobs: dict[str, Any] | None, reason: str | None
    ) -> dict[str, Any]:
        return {"index": place, "text": text, "logprobs": logprobs, "finish_reason": reason}


class _Chat:
    """Choices of /v1/chat/completions: the role first, the reason last, text in between."""

    def __init__(self, prepared: Prepared, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._begun: set[int] = set()

    def chunk(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        place, reason = chunk.output_index, chunk.finish_reason
        if reason in ("error", "abort"):
            return
        if place not in self._begun:
            self._begun.add(place)
            role = {"role": "assistant", "content": "", "refusal": None}
            yield self._choice(place, role, None, None)
        if chunk.text or chunk.logprobs:
            logprobs = chunk.logprobs and chat_logprobs(chunk.logprobs, self._tokenizer)
            yield self._choice(place, {"content": chunk.text}, logprobs or None, None)
        if reason is not None:
            yield self._choice(place, {}, None, reason)

    def result(self, result: Result) -> Iterator[dict[str, Any]]:
        return iter(())

    def _choice(
        self, place: int, delta: dict[str, Any], logprobs: Any, reason: str | None
    ) -> dict[str, Any]:
        return {"index": place, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
