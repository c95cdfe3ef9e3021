"""From a request's body to a job for the engine, with everything checked that can be."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256

from foreword import __version__
from foreword._errors import ParameterError
from foreword.engine import SamplingParams, from_openai
from foreword.serving._prefix_names import prefix_names
from foreword.serving.http._errors import ApiError
from foreword.serving.http._refusals import blamed
from foreword.serving.http._service import Job, Service
from foreword.serving.http.api._choice import Choice, choose
from foreword.serving.http.api._schemas import ChatRequest, CompletionRequest, Sampling
from foreword.serving.http.api._texts import encode, encode_chat, without_delay
from foreword.serving.http.guard._keys import Caller

_HERE = frozenset(
    {
        "model",
        "prefix",
        "prompt",
        "messages",
        "user",
        "stream",
        "stream_options",
        "echo",
        "cache_salt",
    }
)
"""Fields that the server takes care of; the rest makes the sampling parameters."""


@dataclass(frozen=True)
class Prepared:
    """A request that is ready to run, and how its answer is to be written.

    Attributes:
        id, created, model, fingerprint: what every piece of the answer carries; the model is
            called as the request called it.
        echo: each prompt's text, to be put in front of its answers; None to leave it away.
        stream: whether the answer is sent as it comes.
        include_usage, continuous_usage: what a stream tells of its length.
    """

    job: Job
    id: str
    created: int
    model: str
    fingerprint: str
    echo: tuple[str, ...] | None
    stream: bool
    include_usage: bool
    continuous_usage: bool


async def prepare_completion(service: Service, caller: Caller, body: CompletionRequest) -> Prepared:
    """What a body of /v1/completions asks for.

    Raises:
        ApiError: 400 a field or prompt is unusable; 404 no such model or prefix.
    """
    choice = choose(service, caller, body.model, prefix_names(body.prefix))
    wants = _sampling(service, caller, body, default=16)
    wanted = body.prompt
    many = [wanted] if isinstance(wanted, str) or isinstance(wanted[0], int) else wanted
    prompts = await without_delay(
        sum(len(prompt) if isinstance(prompt, str) else len(prompt) // 8 for prompt in many),
        lambda: [
            encode(service, prompt, "prompt" if len(many) == 1 else f"prompt[{i}]", choice.taken)
            for i, prompt in enumerate(many)
        ],
    )
    echo = None
    if body.echo:
        decode = _decoder(service)
        echo = tuple(
            prompt if isinstance(prompt, str) else decode(ids)
            for prompt, ids in zip(many, prompts, strict=True)
        )
    return _prepared(service, body, choice, prompts, wants, echo)


async def prepare_chat(service: Service, caller: Caller, body: ChatRequest) -> Prepared:
    """What a body of /v1/chat/completions asks for.

    Raises:
        ApiError: 400 a field or message is unusable; 404 no such model or prefix.
    """
    choice = choose(service, caller, body.model, prefix_names(body.prefix))
    given = body.max_tokens is not None or body.max_completion_tokens is not None
    default = service.config.default_max_tokens
    wants = _sampling(service, caller, body, default=default or service.llm.max_context)
    ids = await encode_chat(service, [message.plain() for message in body.messages], choice.taken)
    if not given:
        room = min(service.llm.max_context, service.llm.capacity) - choice.taken - len(ids)
        wants = replace(wants, max_tokens=max(1, min(wants.max_tokens, room)))
    return _prepared(service, body, choice, [ids], wants, None)


@lru_cache(maxsize=256)
def fingerprint(model: str, max_context: int, prefixes: tuple[str, ...] = ()) -> str:
    """OpenAI's `system_fingerprint`: of this version, the model's name, and the identities of the
    prefixes in front; not of the model's weights."""
    text = "\n".join((__version__, model, str(max_context), *prefixes))
    return f"fp_{sha256(text.encode()).hexdigest()[:12]}"


def _sampling(service: Service, caller: Caller, body: Sampling, *, default: int) -> SamplingParams:
    """The sampling parameters, within this server's limits and the caller's."""
    if body.stream_options is not None and not body.stream:
        raise ApiError(
            400,
            "stream_options needs stream=true: add it, or leave both out",
            param="stream_options",
            code="invalid_value",
        )
    fields = body.model_dump(exclude_none=True, exclude=set(_HERE))
    most = caller.limits.max_tokens
    default = default if most is None else min(default, most)
    scoring = fields.get("max_tokens") == 0
    if scoring:
        if not getattr(body, "echo", None):
            raise ApiError(
                400,
                "max_tokens=0 needs echo=true: ask for a token, or for the prompt",
                param="max_tokens",
                code="invalid_value",
            )
        del fields["max_tokens"]
    try:
        params = from_openai(fields, max_tokens=default)
        if getattr(body, "echo", None) and (scoring or params.logprobs is not None):
            params = replace(
                params,
                max_tokens=0 if scoring else params.max_tokens,
                prompt_logprobs=params.logprobs or 0,
            )
    except ParameterError as error:
        raise blamed(error, tuple(type(body).model_fields)) from None
    if params.n > service.config.max_n:
        raise ApiError(
            400,
            f"n is {params.n}, the limit is {service.config.max_n}: send the request again for "
            "more answers",
            param="n",
            code="invalid_value",
        )
    if most is not None and params.max_tokens > most:
        named = "max_tokens" if "max_tokens" in fields else "max_completion_tokens"
        raise ApiError(
            400,
            f"{named} is {params.max_tokens}, the limit of this key is {most}: ask for less",
            param=named,
            code="invalid_value",
        )
    return params


def _prepared(
    service: Service,
    body: Sampling,
    choice: Choice,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    echo: tuple[str, ...] | None,
) -> Prepared:
    options = body.stream_options
    usage = bool(options and options.include_usage)
    return Prepared(
        job=Job(
            prompts=tuple(prompts),
            params=(params,) * len(prompts),
            cache_salt=body.cache_salt or "",
            user=body.user or "",
            prefixes=choice.names,
        ),
        id=uuid.uuid4().hex,
        created=int(time.time()),
        model=choice.model,
        fingerprint=fingerprint(
            service.model,
            service.llm.max_context,
            tuple(info.identity for info in choice.prefixes),
        ),
        echo=echo,
        stream=bool(body.stream),
        include_usage=usage,
        continuous_usage=bool(usage and options and options.continuous_usage_stats),
    )


def _decoder(service: Service) -> Callable[[list[int]], str]:
    tokenizer = service.llm.tokenizer
    return (lambda ids: "") if tokenizer is None else tokenizer.decode
