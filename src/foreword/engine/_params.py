"""What a request may ask of its answer: length, sampling, penalties, stops, logprobs.

Every value is checked where it is given, so the engine never meets an impossible one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from foreword._errors import ParameterError

MAX_N = 128
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_BIASES = 300
LARGEST_BIAS = 100
_INT64 = 2**63
_ID = re.compile("0|[1-9][0-9]{0,18}")  # one way to write each, so that none is named twice


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request's answers are chosen and when they end.

    The order is: penalties, `logit_bias`, temperature, `top_k`, `top_p`, `min_p`, draw. The same
    seed gives the same answer in any batch.

    Args:
        max_tokens: most tokens to generate, at least 1; 0 only together with `prompt_logprobs`, to
            score a text.
        temperature: divides the logits; 0 takes the most probable token (lowest id among equals).
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: keep the fewest most probable tokens whose probabilities add up to this, in (0, 1]
            (nucleus sampling, Holtzman et al. 2020).
        min_p: keep tokens at least this fraction as probable as the best one, in [0, 1]
            (Nguyen et al. 2024).
        repetition_penalty: divides positive and multiplies negative logits of every token seen in
            prompt or answer (CTRL, Keskar et al. 2019); above 0, 1 is neutral.
        presence_penalty: subtracted from the logits of tokens already generated, in [-2, 2].
        frequency_penalty: the same, times how often the token was generated, in [-2, 2].
        seed: a 64-bit signed whole number; None derives one from the engine's seed and the
            request's number.
        n: answers per prompt, 1 to 128; each draws from its own stream.
        stop: up to 16 texts (one text, or a list) that end an answer; they are not part of it.
        stop_token_ids: ids that end an answer.
        ignore_eos: go on after the model's end-of-text token.
        logprobs: report each token's log-probability and that many alternatives, 0 to 20.
        scaled_logprobs: report those of the logits divided by the temperature, as losses of sampled
            text want them, instead of the logits' own. Bias, penalties and filters never count.
        prompt_logprobs: the same of the prompt's own tokens. Such a prompt is computed anew, beside
            what the cache holds of it.
        logit_bias: added to the logits of up to 300 tokens, by id, from -100 (in effect never) to
            100 (in effect always).

    Raises:
        ParameterError: a value outside its limits; the message names the field, limit and way out.
    """

    max_tokens: int = 16
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    scaled_logprobs: bool = False
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        values: dict[str, Any] = {
            "max_tokens": _most(self.max_tokens, scoring=self.prompt_logprobs is not None),
            "temperature": _number("temperature", self.temperature, "0 is greedy decoding"),
            "top_k": _whole("top_k", self.top_k, 0, None, "0 keeps every token"),
            "top_p": _number("top_p", self.top_p, "1 keeps every token", below=1, open_low=True),
            "min_p": _number("min_p", self.min_p, "0 keeps every token", below=1),
            "repetition_penalty": _number(
                "repetition_penalty", self.repetition_penalty, "1 is neutral", open_low=True
            ),
            "presence_penalty": _number(
                "presence_penalty", self.presence_penalty, "0 is neutral", above=-2, below=2
            ),
            "frequency_penalty": _number(
                "frequency_penalty", self.frequency_penalty, "0 is neutral", above=-2, below=2
            ),
            "n": _whole("n", self.n, 1, MAX_N, "send the prompt again for more answers"),
            "stop": _stops(self.stop),
            "stop_token_ids": _ids(self.stop_token_ids),
            "logit_bias": _biases(self.logit_bias),
        }
        if self.seed is not None:
            values["seed"] = _whole(
                "seed", self.seed, -_INT64, _INT64 - 1, "leave it out for an unseeded request"
            )
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                values[name] = _whole(
                    name, getattr(self, name), 0, MAX_LOGPROBS, "leave it out for none"
                )
        if not isinstance(self.ignore_eos, bool):
            raise ParameterError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")
        if not isinstance(self.scaled_logprobs, bool) or (self.scaled_logprobs and self.greedy):
            raise ParameterError(
                f"scaled_logprobs must be True or False, and False at temperature 0, got "
                f"{self.scaled_logprobs!r} at {self.temperature!r}"
            )
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken without a draw."""
        return self.temperature == 0.0

    @property
    def penalised(self) -> bool:
        """Whether what was said before changes the logits."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


def check_bias(params: SamplingParams, vocab: int) -> None:
    """Whether every token of a bias is one of `vocab`.

    Raises:
        ParameterError: one is not.
    """
    for token in params.logit_bias:
        if token >= vocab:
            raise ParameterError(
                f"logit_bias names token {token}: the vocabulary has ids 0 to {vocab - 1}"
            )


_HARMLESS = frozenset(
    {
        "model", "prompt", "messages", "user", "store", "metadata", "service_tier",
        "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction",
        "parallel_tool_calls",
    }
)  # fmt: skip
_SAME_NAME = frozenset(
    {
        "temperature", "top_p", "min_p", "n", "stop", "seed", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "stop_token_ids", "ignore_eos",
        "prompt_logprobs",
    }
)  # fmt: skip
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "stream": (False,),
    "stream_options": ({},),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_WAY_OUT = {
    "stream": "a batch line has one whole answer; leave it out",
    "best_of": "ask for n answers and choose among them",
}


def from_openai(body: Mapping[str, Any], *, max_tokens: int = 16) -> SamplingParams:
    """Sampling parameters of an OpenAI completions or chat-completions request body.

    Fields set to null count as absent. The temperature defaults to OpenAI's 1.0; `max_tokens` is
    the length of a request that names none. Beyond OpenAI's fields it takes `top_k` (-1 is 0),
    `min_p`, `repetition_penalty`, `stop_token_ids`, `ignore_eos` and `prompt_logprobs`, with which
    `max_tokens` may be 0. Fields that do not bear on the text (`user`, `metadata`, ...) are
    ignored, and so are others at their neutral value (`tools: []`).

    Raises:
        ParameterError: a field that would change the answer in a way the engine does not know, an
            unknown field, or a value outside its limits; the message names it.
    """
    if not isinstance(body, Mapping):
        raise ParameterError(
            f"the request body must be a JSON object, got {type(body).__name__}: "
            'write {"prompt": ..., "max_tokens": ...}'
        )
    given = {
        name: value
        for name, value in body.items()
        if value is not None and name not in _HARMLESS and not _is_neutral(name, value)
    }
    fields: dict[str, Any] = {"temperature": 1.0}
    fields.update({name: given.pop(name) for name in _SAME_NAME & given.keys()})
    fields["max_tokens"] = _length({k: given.pop(k) for k in _LENGTHS if k in given}, max_tokens)
    fields["logprobs"] = _logprobs(given.pop("logprobs", None), given.pop("top_logprobs", None))
    if "logit_bias" in given:
        fields["logit_bias"] = _by_number(given.pop("logit_bias"))
    if "top_k" in given:
        top_k = given.pop("top_k")
        fields["top_k"] = 0 if top_k == -1 else top_k
    if "best_of" in given:
        best_of = _whole("best_of", given["best_of"], 1, MAX_N, "leave it out")
        if best_of <= _whole("n", fields.get("n", 1), 1, MAX_N, "leave it out"):
            del given["best_of"]
    if given:
        name = min(given, key=str)
        way_out = _WAY_OUT.get(name, "leave it out of the request")
        raise ParameterError(f"{name}={_short(given[name])} is not supported: {way_out}")
    return SamplingParams(**fields)


def _is_neutral(name: str, value: object) -> bool:
    # Types are compared too: 0 == False, yet `stream: 0` is a mistake worth naming.
    return any(type(value) is type(same) and value == same for same in _NEUTRAL.get(name, ()))


def _length(given: dict[str, Any], default: int) -> Any:
    if len(given) == 2 and given["max_tokens"] != given["max_completion_tokens"]:
        raise ParameterError(
            f"max_tokens={_short(given['max_tokens'])} and max_completion_tokens="
            f"{_short(given['max_completion_tokens'])} disagree: give one of them"
        )
    for name, value in given.items():  # 0 is for `SamplingParams` to judge
        return value if value == 0 else _whole(name, value, 1, None, "ask for at least one")
    return default


def _by_number(bias: object) -> object:
    """JSON's keys are texts: `{"50256": -100}`."""
    if not isinstance(bias, Mapping):
        return bias
    return {
        int(key) if isinstance(key, str) and _ID.fullmatch(key) else key: value
        for key, value in bias.items()
    }


def _logprobs(logprobs: object, top_logprobs: object) -> Any:
    """Completions give a number; chat gives a yes or no, and the number in `top_logprobs`."""
    if isinstance(logprobs, bool):
        if logprobs:
            top = 0 if top_logprobs is None else top_logprobs
            return _whole("top_logprobs", top, 0, MAX_LOGPROBS, "leave it out for none")
        logprobs = None
    if top_logprobs is not None and top_logprobs != 0:
        raise ParameterError(
            f"top_logprobs={_short(top_logprobs)} needs logprobs=true: add it, or leave both out"
        )
    return logprobs


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _whole(name: str, value: object, low: int, high: int | None, way_out: str) -> int:
    limit = f"at least {low}" if high is None else f"from {low} to {high}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if low <= number and (high is None or number <= high):
            return number
    raise ParameterError(f"{name} must be a whole number {limit}, got {_short(value)}: {way_out}")


def _number(
    name: str,
    value: object,
    way_out: str,
    *,
    above: float = 0,
    below: float = math.inf,
    open_low: bool = False,
) -> float:
    limit = f"above {above}" if open_low else f"at least {above}"
    limit += "" if below == math.inf else f" and at most {below}"
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    fits = above < number <= below if open_low else above <= number <= below
    if not math.isfinite(number) or not fits:
        raise ParameterError(
            f"{name} must be a finite number {limit}, got {_short(value)}: {way_out}"
        )
    return number


def _most(value: object, *, scoring: bool) -> int:
    if scoring:
        return _whole("max_tokens", value, 0, None, "0 asks for the prompt's logprobs alone")
    return _whole(
        "max_tokens", value, 1, None, "ask for one, or give prompt_logprobs to score a text"
    )


def _biases(value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise ParameterError(
            f"logit_bias must map token ids to numbers, got {_short(value)}: write {{50256: -100}}"
        )
    if len(value) > MAX_BIASES:
        raise ParameterError(
            f"logit_bias names {len(value)} tokens, the limit is {MAX_BIASES}: keep those that "
            "matter most"
        )
    way_out = "look the id up in the model's vocabulary"
    return {
        _whole("each token id of logit_bias", token, 0, _INT64 - 1, way_out): _number(
            "each value of logit_bias",
            bias,
            "0 is neutral",
            above=-LARGEST_BIAS,
            below=LARGEST_BIAS,
        )
        for token, bias in value.items()
    }


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = (value,) if isinstance(value, str) else value
    if not isinstance(stops, Sequence) or isinstance(stops, (bytes, bytearray)):
        raise ParameterError(f"stop must be a text or a list of texts, got {_short(value)}")
    if len(stops) > MAX_STOPS:
        raise ParameterError(
            f"stop holds {len(stops)} texts, the limit is {MAX_STOPS}: keep those that occur first"
        )
    for stop in stops:
        if not isinstance(stop, str):
            raise ParameterError(
                f"stop holds {_short(stop)}, which is not a text: token ids go in stop_token_ids"
            )
        if not stop:
            raise ParameterError("stop holds an empty text, which would end at once: remove it")
    return tuple(stops)


def _ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        raise ParameterError(
            f"stop_token_ids must be a list of token ids, got {_short(value)}: texts go in stop"
        )
    way_out = "look the id up in the model's vocabulary"
    return tuple(_whole("each of stop_token_ids", item, 0, _INT64 - 1, way_out) for item in value)
