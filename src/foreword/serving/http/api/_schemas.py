"""Bodies of requests: what is checked before anything runs, and what the OpenAPI document says.

Nothing is coerced ("5" is no number, 1.0 no whole number) and no field is passed over: what the
server does not know is refused by name. Null counts as absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from foreword.serving._prefix_names import MAX_JOINED, MAX_NAME

MAX_PROMPTS = 256
"""Prompts of one request."""
MAX_MESSAGES = 2048
"""Messages of one chat."""
MAX_PARTS = 8192
"""Parts of all messages of one chat."""
MAX_FIELDS = 300
"""Names in an object of the body."""

_INT64 = 2**63

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(max_length=512)]
PrefixName = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
Bias = Annotated[float, Field(ge=-100, le=100)]
IdText = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Nothing = Annotated[list[Any], Field(max_length=0)]


class Strict(BaseModel):
    """The base of request bodies."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(Strict):
    """What a stream tells beside the text."""

    include_usage: bool | None = Field(
        None, description="End with a chunk of no choices that holds the usage."
    )
    continuous_usage_stats: bool | None = Field(
        None, description="With include_usage: every chunk holds the usage so far."
    )
    include_obfuscation: bool | None = Field(None, description="Accepted; nothing is padded.")


class Sampling(Strict):
    """What completions and chats have in common."""

    model: str | None = Field(
        None,
        description="The model's name, or that of a learned prefix: the model behind it. See "
        "/v1/models.",
    )
    prefix: (
        PrefixName
        | Annotated[list[PrefixName], Field(min_length=1, max_length=MAX_JOINED, fail_fast=True)]
        | None
    ) = Field(
        None,
        description="A learned prefix to stand in front of the prompt, or several, joined in "
        "their order.",
    )
    max_tokens: int | None = Field(None, ge=0, description="Most tokens of one answer.")
    n: int | None = Field(None, ge=1, le=128, description="Answers per prompt.")
    temperature: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="1 where absent; 0 is greedy."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0 keep every token.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, allow_inf_nan=False)
    logit_bias: dict[IdText, Bias] | None = Field(
        None, max_length=MAX_FIELDS, description="Added to the logits of these token ids."
    )
    seed: int | None = Field(
        None, ge=-_INT64, lt=_INT64, description="The same seed gives the same answer in any batch."
    )
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = Field(
        None, description="Texts that end an answer and are not part of it."
    )
    stop_token_ids: Annotated[list[TokenId], Field(max_length=1024, fail_fast=True)] | None = Field(
        None, description="Token ids that end an answer."
    )
    ignore_eos: bool | None = Field(None, description="Go on after the end-of-text token.")
    stream: bool | None = Field(None, description="Send the answer as server-sent events.")
    stream_options: StreamOptions | None = None
    cache_salt: Name | None = Field(
        None, description="Only requests of the same salt (and tenant) share cache entries."
    )
    user: Name | None = Field(
        None, description="Whom a fair policy charges, where the server has no keys."
    )
    # Accepted and without effect on the answer.
    metadata: Annotated[dict[str, Any], Field(max_length=MAX_FIELDS)] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class CompletionRequest(Sampling):
    """Body of POST /v1/completions."""

    prompt: (
        Text
        | TokenIds
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True)]
    ) = Field(description="A text, a list of texts, a list of token ids, or a list of those.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Log-probabilities, with so many alternatives each."
    )
    echo: bool | None = Field(
        None, description="Put the prompt in front; with logprobs, its log-probabilities too."
    )
    best_of: int | None = Field(None, ge=1, le=128, description="At most n.")
    suffix: Literal[""] | None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message of a chat. Fields that an assistant's message comes with are accepted."""

    role: str = Field(min_length=1, max_length=64)
    content: (
        str | Annotated[list[TextPart], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True)]
    )
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Nothing | None = None

    def plain(self) -> dict[str, str]:
        """The message as templates read it, its parts put together."""
        text = (
            self.content
            if isinstance(self.content, str)
            else "".join(part.text for part in self.content)
        )
        plain = {"role": self.role, "content": text}
        return plain if self.name is None else {**plain, "name": self.name}


class ResponseFormat(Strict):
    """Plain text is the one format there is."""

    type: Literal["text"]


class ChatRequest(Sampling):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = Field(
        None, ge=1, description="Most tokens of one answer; the newer name of max_tokens."
    )
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="With logprobs: so many alternatives each."
    )
    tools: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: Nothing | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    prediction: Annotated[dict[str, Any], Field(max_length=MAX_FIELDS)] | None = None


class TokenizeRequest(Strict):
    """Body of POST /tokenize: a prompt or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: (
        Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
        | None
    ) = None
    add_special_tokens: bool | None = Field(
        None,
        description="Of a prompt: put the tokenizer's special tokens in front. True if absent.",
    )
    return_token_strs: bool | None = Field(None, description="Each token's text, too.")


class DetokenizeRequest(Strict):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
