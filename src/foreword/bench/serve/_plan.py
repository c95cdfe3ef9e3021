"""What is asked when, decided before the first request leaves: the same plan for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeAlias

from foreword._errors import ParameterError
from foreword.bench.serve._settings import LoadSettings, Tenant
from foreword.simulation import Trace, read_trace

Prompt: TypeAlias = "str | list[int]"

_WORDS = (
    *("river", "stone", "letter", "garden", "winter", "window", "market", "silver", "morning"),
    *("bridge", "candle", "forest", "harbour", "paper", "shadow", "summer", "thunder", "valley"),
)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request that is going to be sent.

    Attributes:
        number: its place in the plan.
        at: when it is to leave, in seconds from the start.
        tenant: who sends it.
        answer_tokens: how many it asks for.
    """

    number: int
    at: float
    tenant: Tenant
    answer_tokens: int


class Asked(Protocol):
    """Makes the prompts of a plan, each when it is needed: all of them at once could be large."""

    def prompt(self, number: int) -> tuple[str, Prompt]:
        """The system prompt of a chat, "" of everything else; and the question, or all there is."""


@dataclass(frozen=True)
class Plan:
    """All requests of a run in the order in which they leave, and what makes their prompts.

    `rate` is what was asked for, in requests per second. `skipped` counts requests of a trace that
    were left out as too long.
    """

    requests: tuple[Planned, ...]
    asked: Asked
    rate: float
    skipped: int = 0


def make_plan(settings: LoadSettings, rate: float | None) -> Plan:
    """The requests of a run: arrivals at random at `rate` per second (Poisson), or a trace's own.

    Raises:
        ParameterError: no rate and no trace, or nothing to send.
        TraceError: the trace cannot be read.
    """
    if settings.trace is not None:
        return _from_trace(settings, settings.trace)
    if rate is None or not 0 < rate < float("inf"):
        raise ParameterError(f"rate is {rate}: give requests per second, above 0, or a trace")
    rng = random.Random(f"arrivals {settings.seed}")
    cumulative = list(accumulate(tenant.weight for tenant in settings.tenants))
    planned: list[Planned] = []
    at = 0.0
    while settings.requests is None or len(planned) < settings.requests:
        at += rng.expovariate(rate)
        if settings.requests is None and at >= settings.seconds:
            break
        tenant = rng.choices(settings.tenants, cum_weights=cumulative)[0]
        planned.append(Planned(len(planned), at, tenant, settings.answer_tokens))
    if not planned:
        raise ParameterError(
            f"no request falls into {settings.seconds:g} s at {rate:g} per second: give more time"
        )
    return Plan(tuple(planned), Conversation(settings), rate)


class Conversation:
    """Questions behind a few heads, some of which are asked for more often than others.

    Each question begins with a number that no other has, and so does the text of each head.
    """

    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings
        self._shares = list(accumulate((k + 1) ** -settings.zipf for k in range(settings.heads)))
        self._heads = [
            self._tokens(random.Random(f"head {settings.seed} {k}"), settings.head_tokens)
            for k in range(settings.heads)
        ]

    def prompt(self, number: int) -> tuple[str, Prompt]:
        settings = self._settings
        rng = random.Random(f"question {settings.seed} {number}")
        head = rng.choices(self._heads, cum_weights=self._shares)[0]
        question = self._tokens(rng, settings.question_tokens)
        if isinstance(head, list) and isinstance(question, list):
            return "", head + question
        if settings.endpoint == "chat":
            return str(head), question
        return "", f"{head} {question}" if head else question

    def _tokens(self, rng: random.Random, length: int) -> Prompt:
        if self._settings.form == "ids":
            return [rng.randrange(self._settings.vocab) for _ in range(length)]
        return " ".join([nonce(rng), *rng.choices(_WORDS, k=length - 1)]) if length else ""


def nonce(rng: random.Random) -> str:
    """A word of digits that hardly comes twice."""
    return str(rng.randrange(10**11, 10**12))


def _from_trace(settings: LoadSettings, path: Path) -> Plan:
    trace = read_trace(path).at_rate(settings.speed)
    if settings.requests is not None:
        trace = trace.head(settings.requests)
    by_name = {tenant.name: tenant for tenant in settings.tenants}
    limit = settings.max_prompt
    kept: list[int] = []
    planned: list[Planned] = []
    skipped = 0
    for index, request in enumerate(trace.requests):
        if request.arrival >= settings.seconds and settings.requests is None:
            break
        if limit is not None and request.tokens > limit:
            skipped += 1
            continue
        # A trace's tenant sends with its own key where there is one, else they take turns.
        known = by_name.get(request.tenant)
        tenant = known or settings.tenants[len(planned) % len(settings.tenants)]
        kept.append(index)
        planned.append(Planned(len(planned), request.arrival, tenant, request.output))
    if not planned:
        raise ParameterError(
            f"nothing to send of {path.name}: {skipped} requests are longer than max_prompt "
            f"({limit}), the others come after {settings.seconds:g} s"
        )
    span = planned[-1].at or 1.0
    asked = Blocks(trace, kept, settings)
    return Plan(tuple(planned), asked, len(planned) / span, skipped)


class Blocks:
    """Prompts of a trace: each of its block ids stands for the same tokens everywhere."""

    def __init__(self, trace: Trace, kept: Sequence[int], settings: LoadSettings) -> None:
        self._trace = trace
        self._kept = kept
        self._block = lru_cache(maxsize=4096)(self._make)
        self._settings = settings

    def prompt(self, number: int) -> tuple[str, Prompt]:
        request = self._trace.requests[self._kept[number]]
        ids = [token for block in request.path for token in self._block(block)]
        return "", ids[: request.tokens]

    def _make(self, block: int) -> tuple[int, ...]:
        rng = random.Random(f"block {self._settings.seed} {block}")
        return tuple(rng.randrange(self._settings.vocab) for _ in range(self._trace.unit))
