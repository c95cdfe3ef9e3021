"""Texts and chats to token ids: within the context, and never in the event loop's way."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from foreword._errors import PromptError
from foreword.models import Tokenizer
from foreword.serving._chat import render_chat
from foreword.serving.http._errors import ApiError
from foreword.serving.http._service import Service

T = TypeVar("T")

_INLINE = 4096
"""Characters that are tokenised between two events of the loop, about a millisecond's worth."""
_MESSAGE = 16
"""Characters that a message takes beside its text, or so."""

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("foreword_tokenising")


def render(service: Service, messages: list[dict[str, str]]) -> str | list[int]:
    """A chat as a prompt, by the model's template; takes time with a long one.

    Raises:
        ApiError: 400, the template refuses the messages.
    """
    try:
        return render_chat(service.llm.tokenizer, messages)
    except PromptError as error:
        raise ApiError(400, str(error), param="messages", code="invalid_prompt") from None


async def encode_chat(
    service: Service, messages: list[dict[str, str]], taken: int = 0
) -> list[int]:
    """Token ids of a chat that the model can answer behind prefixes of `taken` positions.

    Raises:
        ApiError: 400, the template refuses the messages, or they are too long.
    """
    size = sum(len(message["content"]) for message in messages)
    _check_size(service, size, "messages")
    return await without_delay(
        size + _MESSAGE * len(messages),
        lambda: encode(service, render(service, messages), "messages", taken),
    )


def encode(service: Service, prompt: str | list[int], name: str, taken: int = 0) -> list[int]:
    """Token ids of one prompt that the model can answer behind prefixes of `taken` positions;
    takes time with a long text.

    Raises:
        ApiError: 400, it is empty, too long or outside the vocabulary.
    """
    limit = service.llm.max_context
    if isinstance(prompt, str):
        _check_size(service, len(prompt), name)
    elif len(prompt) >= limit:
        raise _too_long(name, len(prompt), limit)
    try:
        ids = service.llm.encode(prompt, name)
    except PromptError as error:
        # The one thing left that may be wrong with a text that is not empty is its length.
        code = "context_length_exceeded" if "context" in str(error) else "invalid_prompt"
        param = name.partition("[")[0]
        raise ApiError(400, str(error), param=param, code=code) from None
    if len(ids) + taken >= limit:
        raise _too_long(name, len(ids), limit, taken=taken)
    return ids


async def without_delay(size: int, work: Callable[[], T]) -> T:
    """What `work` returns: at once, or from a thread where it would hold everybody up.

    `size` is what there is to do, in characters or tokens. Two threads at a time, so that the
    engine keeps its processor.
    """
    if size <= _INLINE:
        return work()
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(2)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(work, limiter=limiter)


def _check_size(service: Service, characters: int, name: str) -> None:
    """Refuse what is too long by its characters alone, before time is spent on its tokens."""
    tokenizer = service.llm.tokenizer
    if tokenizer is None:
        return
    least = characters // _longest_token(tokenizer)
    if least >= service.llm.max_context:
        raise _too_long(name, least, service.llm.max_context, "at least ")


def _too_long(name: str, tokens: int, limit: int, about: str = "", taken: int = 0) -> ApiError:
    behind = f", its learned prefix takes {taken}," if taken else ""
    return ApiError(
        400,
        f"{name} has {about}{tokens} tokens: the context is {limit}{behind} and the answer needs "
        "at least one of them; shorten it",
        param=name.partition("[")[0],
        code="context_length_exceeded",
    )


_longest: WeakKeyDictionary[Tokenizer, int] = WeakKeyDictionary()


def _longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the longest piece in the vocabulary. O(vocabulary) once."""
    if tokenizer not in _longest:
        _longest[tokenizer] = max((len(piece) for piece in tokenizer.inner.get_vocab()), default=1)
    return _longest[tokenizer]
