"""What comes back: answers, pieces of answers, and how far along the work is.

All are frozen values; `to_dict` gives plain lists, dicts, strings and numbers, ready for JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Literal, TypeAlias

FinishReason: TypeAlias = Literal["stop", "length", "abort", "error"]
"""Why an answer ended: a stop text, a stop id or the end-of-text token; `max_tokens` or the end of
the context; the caller; a fault in this request alone."""


def to_plain(value: Any) -> Any:
    """`value` with dataclasses as dicts, tuples as lists, and NaN and infinities as None."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {name: to_plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a token of an answer or a prompt was, and what else might have stood there.

    Natural logarithms of the softmax of the model's own logits, before penalties, bias, temperature
    and filters; with `SamplingParams.scaled_logprobs`, of those logits divided by the temperature.

    Attributes:
        token_id: the token that stands there.
        token: its text by itself; part of a character shows as U+FFFD.
        logprob: its log-probability; NaN (None in `to_dict`) for a prompt's first token, which has
            none.
        top: (id, text, logprob) of the most probable tokens, best first, at most as many as asked
            for. Tokens of probability zero are left out.
    """

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The token as a dict, its alternatives as dicts with the same names."""
        top = [{"token_id": i, "token": t, "logprob": to_plain(p)} for i, t, p in self.top]
        return {
            "token_id": self.token_id,
            "token": self.token,
            "logprob": to_plain(self.logprob),
            "top": top,
        }


def _all(logprobs: tuple[TokenLogprob, ...] | None) -> list[dict[str, Any]] | None:
    return None if logprobs is None else [logprob.to_dict() for logprob in logprobs]


@dataclass(frozen=True, slots=True)
class Output:
    """One answer to a prompt.

    Attributes:
        index: which of the request's `n` answers, from 0.
        text: the answer, without the stop text that ended it.
        token_ids: every generated id, those of the stop text or stop token included.
        finish_reason: why it ended.
        stop: the stop text or id that ended it, else None.
        logprobs: one entry per token id, or None when they were not asked for.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop: str | int | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready values."""
        return {
            "index": self.index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "stop": self.stop,
            "logprobs": _all(self.logprobs),
        }


@dataclass(frozen=True, slots=True)
class Timing:
    """When things happened to one request, in seconds after the engine took it.

    None is what did not happen: a request that was refused or aborted in line has no first token.

    Attributes:
        admitted: it left the line and its prompt began to be computed.
        first_token: the first token of any of its answers was sampled.
        ended: its last answer ended.
    """

    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The moments as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain


@dataclass(frozen=True, slots=True)
class Result:
    """Everything that came of one prompt.

    Attributes:
        index: the prompt's place in the call, from 0.
        prompt_tokens: its length in tokens.
        outputs: its `n` answers in order; empty when the request was refused.
        error: what went wrong with this request, else None.
        cached_tokens: how many of the prompt's tokens were there when its first answer began,
            left by earlier requests or brought by one that runs at the same time.
        timing: when it was admitted, wrote its first token and ended; None if it was refused.
        prompt_logprobs: one entry per prompt token, or None when they were not asked for or the
            request ended before they were all there.
    """

    index: int
    prompt_tokens: int
    outputs: tuple[Output, ...]
    error: str | None = None
    cached_tokens: int = 0
    timing: Timing | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def text(self) -> str:
        """The first answer's text; empty when there is none."""
        return self.outputs[0].text if self.outputs else ""

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values."""
        return {
            "index": self.index,
            "prompt_tokens": self.prompt_tokens,
            "outputs": [output.to_dict() for output in self.outputs],
            "error": self.error,
            "cached_tokens": self.cached_tokens,
            "timing": None if self.timing is None else self.timing.to_dict(),
            "prompt_logprobs": _all(self.prompt_logprobs),
        }


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer that is still being written.

    The texts of one answer's chunks put together are its `Output.text`.

    Attributes:
        index: the prompt's place in the call.
        output_index: which of its answers.
        text: what became certain; empty while a character or a stop text is half written.
        token_ids: the ids generated since the last chunk.
        finish_reason: set in the answer's last chunk only.
        logprobs: one entry per token id, or None when they were not asked for.
    """

    index: int
    output_index: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The piece as JSON-ready values."""
        return {
            "index": self.index,
            "output_index": self.output_index,
            "text": self.text,
            "token_ids": list(self.token_ids),
            "finish_reason": self.finish_reason,
            "logprobs": _all(self.logprobs),
        }


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call has come.

    Attributes:
        done, total: requests finished and handed over.
        computed_prompt_tokens: prompt tokens run through the model so far.
        generated_tokens: tokens written so far, over all answers.
        running, waiting: answers in the batch and in line.
        elapsed: seconds since the call began.
        tokens_per_second: `generated_tokens / elapsed`, 0 before any time has passed.
        eta_seconds: seconds still to go, by the pace so far; None while there is none to go by.
        fraction: share of the work that is done, where somebody planned it all; else None.
    """

    done: int
    total: int
    computed_prompt_tokens: int
    generated_tokens: int
    running: int
    waiting: int
    elapsed: float
    tokens_per_second: float
    eta_seconds: float | None = None
    fraction: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON-ready values."""
        plain: dict[str, Any] = to_plain(self)
        return plain
