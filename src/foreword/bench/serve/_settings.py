"""What a load on a server is made of: who asks what, how often, and what counts as good."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from foreword._errors import ParameterError

Endpoint: TypeAlias = Literal["completions", "chat"]
Form: TypeAlias = Literal["ids", "text"]
ENDPOINTS: tuple[Endpoint, ...] = ("completions", "chat")
FORMS: tuple[Form, ...] = ("ids", "text")
CHECKS = ("echo", "marks")


@dataclass(frozen=True)
class Tenant:
    """Somebody who sends requests.

    Attributes:
        name: what results call it; sent as the request's `user` where there is no key.
        key: its API key, never part of a result or a message.
        weight: its share of the requests, beside those of the others.
    """

    name: str = ""
    key: str | None = field(default=None, repr=False)
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ParameterError(
                f"tenant {self.name!r} has weight {self.weight}: give a number above 0"
            )


@dataclass(frozen=True)
class LoadSettings:
    """One load. Times in seconds, lengths in tokens.

    Attributes:
        url: where the server listens, with or without `/v1` behind it.
        model: its name there; "" takes the first that the server lists.
        endpoint: `completions` or `chat`.
        form: prompts as token `ids` or as `text`; chat takes text. A token of text is a word here.
        requests: how many are sent; None sends for `seconds`.
        seconds: how long requests are sent.
        heads: system prompts that requests begin with.
        head_tokens, question_tokens: lengths of a head and of what a request has to itself.
        answer_tokens: of every answer, which goes on behind the end of a text.
        zipf: how unequal the heads' shares are; head k has a share ∝ 1 / k^zipf, 0 is equal.
        vocab: ids are drawn below this.
        trace: a file of requests that are sent instead (`foreword.simulation.read_trace`).
        speed: how many times as fast as it was recorded the trace is sent.
        max_prompt: requests of a trace with longer prompts are left out; None leaves none out.
        tenants: who sends them.
        checks: `echo` has the server repeat each prompt, which holds a number of its own; `marks`
            has each answer made of one token, by `logit_bias`, that the next ones do not have.
        marks: how many such tokens are looked for.
        temperature: of the answers.
        ttft_limit, tpot_limit: the longest wait for a first token, and the longest mean time per
            further token, of an answer that counts as good.
        timeout: an answer that takes longer is given up as lost.
        max_open: requests that are open at once; more than that are not sent, and the run says so.
        lag_limit: 99 % of the requests have to leave within this of their time, else the generator
            itself was too slow for its numbers to be believed.
        seed: of arrivals, prompts and answers.

    Raises:
        ParameterError: a value outside its limits.
    """

    url: str = "http://127.0.0.1:8000"
    model: str = ""
    endpoint: Endpoint = "completions"
    form: Form = "ids"
    requests: int | None = None
    seconds: float = 30.0
    heads: int = 8
    head_tokens: int = 512
    question_tokens: int = 32
    answer_tokens: int = 32
    zipf: float = 1.0
    vocab: int = 1000
    trace: Path | None = None
    speed: float = 1.0
    max_prompt: int | None = None
    tenants: tuple[Tenant, ...] = (Tenant(),)
    checks: tuple[str, ...] = ()
    marks: int = 32
    temperature: float = 0.0
    ttft_limit: float = 2.0
    tpot_limit: float = 0.2
    timeout: float = 600.0
    max_open: int = 4096
    lag_limit: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_choices()
        for name in ("heads", "question_tokens", "answer_tokens", "marks", "max_open"):
            _at_least(name, getattr(self, name), 1)
        _at_least("head_tokens", self.head_tokens, 0)
        _at_least("vocab", self.vocab, 2)
        for name in ("requests", "max_prompt"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        for name in ("seconds", "speed", "ttft_limit", "tpot_limit", "timeout", "lag_limit"):
            _positive(name, getattr(self, name))
        for name in ("zipf", "temperature"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ParameterError(f"{name} is {getattr(self, name)}: give 0 or more")

    def _check_choices(self) -> None:
        if self.endpoint not in ENDPOINTS:
            raise ParameterError(f"no endpoint {self.endpoint!r}: choose completions or chat")
        if self.form not in FORMS:
            raise ParameterError(f"no form of prompts {self.form!r}: choose ids or text")
        if self.endpoint == "chat" and self.form == "ids":
            raise ParameterError("chat takes no token ids: choose text, or completions")
        if self.trace is not None and self.form == "text":
            raise ParameterError("a trace tells lengths in tokens: its prompts are ids")
        for check in self.checks:
            if check not in CHECKS:
                raise ParameterError(f"no check {check!r}: choose some of {', '.join(CHECKS)}")
        if "echo" in self.checks and (self.endpoint, self.form) != ("completions", "text"):
            raise ParameterError("echo needs completions and prompts of text: leave it out")
        if not self.url.startswith(("http://", "https://")):
            raise ParameterError(f"{self.url!r} is no address of a server: give http://HOST:PORT")
        if not self.tenants:
            raise ParameterError("there is no tenant: name one, or leave them out for a nameless")
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ParameterError("two tenants have the same name: give each one of its own")

    @property
    def base(self) -> str:
        """The address with `/v1` behind it and no slash at its end."""
        plain = self.url.rstrip("/")
        return plain if plain.endswith("/v1") else f"{plain}/v1"

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-ready values, keys left out."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["trace"] = None if self.trace is None else self.trace.name
        plain["checks"] = list(self.checks)
        plain["tenants"] = [
            {"name": tenant.name, "weight": tenant.weight, "key": tenant.key is not None}
            for tenant in self.tenants
        ]
        return plain


def _at_least(name: str, value: Any, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ParameterError(f"{name} is {value!r}: give a whole number of at least {low}")


def _positive(name: str, value: Any) -> None:
    if not 0 < value < math.inf:
        raise ParameterError(f"{name} is {value!r}: give a number above 0")
