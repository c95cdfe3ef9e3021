"""Bodies of answers. They are written by hand for speed; these say what is in them, and the tests
hold the one to the other."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Reason = Literal["stop", "length"]
Count = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]


class Exact(BaseModel):
    """The base of answers: these fields and no others."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ErrorDetail(Exact):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Exact):
    """Every answer that is an error."""

    error: ErrorDetail


class PromptTokensDetails(Exact):
    """A part of the prompt's tokens."""

    cached_tokens: Count = Field(description="Those that need not be computed.")


class Usage(Exact):
    """Tokens of a request. `cached_tokens` is known once all prompts are answered."""

    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionLogprobsBody(Exact):
    """An entry per token; null where a prompt's first token has nothing before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[Count]


class CompletionChoice(Exact):
    """One answer; the j-th to prompt i has index i * n + j."""

    index: Count
    text: str
    finish_reason: Reason
    logprobs: CompletionLogprobsBody | None


class Completion(Exact):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class CompletionPiece(Exact):
    """A piece of one answer; put together, the pieces of an index are the whole."""

    index: Count
    text: str
    finish_reason: Reason | None
    logprobs: CompletionLogprobsBody | None


class CompletionChunk(Exact):
    """An event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: Count
    model: str
    system_fingerprint: str
    choices: list[CompletionPiece]
    usage: Usage | None = None


class TopToken(Exact):
    """A token that might have been."""

    token: str
    logprob: float
    bytes: list[Byte]


class ChatToken(TopToken):
    """A token of an answer, and the most probable ones in its place."""

    top_logprobs: list[TopToken]


class ChatLogprobs(Exact):
    """An entry per token."""

    content: list[ChatToken]
    refusal: None


class ChatMessage(Exact):
    """The answer of a chat."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Exact):
    """One answer."""

    index: Count
    message: ChatMessage
    finish_reason: Reason
    logprobs: ChatLogprobs | None


class ChatCompletion(Exact):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: Count
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Exact):
    """What is new: first the role, then text, at last nothing."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: None = None


class ChatPiece(Exact):
    """A piece of one answer."""

    index: Count
    delta: ChatDelta
    finish_reason: Reason | None
    logprobs: ChatLogprobs | None


class ChatChunk(Exact):
    """An event of a streamed chat."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: Count
    model: str
    system_fingerprint: str
    choices: list[ChatPiece]
    usage: Usage | None = None


class ModelObject(Exact):
    """The model that is served, or a learned prefix: the model behind it."""

    id: str
    object: Literal["model"]
    created: Count
    owned_by: str
    max_model_len: Count = Field(description="The longest text in tokens, prompt and answer.")
    parent: str | None = Field(None, description="Of a prefix: the model.")
    prefix_length: Count | None = Field(None, description="Of a prefix: its positions.")


class ModelList(Exact):
    """The models that are served: one."""

    object: Literal["list"]
    data: list[ModelObject]


class Tokens(Exact):
    """Answer of POST /tokenize."""

    count: Count
    max_model_len: Count
    tokens: list[Count]
    token_strs: list[str] | None


class Detokenized(Exact):
    """Answer of POST /detokenize."""

    prompt: str
