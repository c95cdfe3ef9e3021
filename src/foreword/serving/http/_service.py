"""The service: what every route works with, and the one way from a job to its answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from foreword._errors import ForewordError
from foreword.engine import AsyncLLM, Chunk, Result, SamplingParams
from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError
from foreword.serving.http._gate import Gate
from foreword.serving.http._isolation import Isolation
from foreword.serving.http._keys import Caller, Keyring
from foreword.serving.http._metrics import Metrics

if TYPE_CHECKING:
    from foreword.serving.http._batch_jobs import BatchJobs

State = Literal["starting", "ready", "draining"]


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine: prompts as token ids, one `SamplingParams` each.

    `cache_salt` is the user's own, "" for none; the server makes the real one of it.
    """

    prompts: tuple[list[int], ...]
    params: tuple[SamplingParams, ...]
    cache_salt: str = ""

    @property
    def answers(self) -> int:
        return sum(params.n for params in self.params)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)


@dataclass
class Service:
    """One engine and everything that stands between it and strangers.

    Attributes:
        llm: the engine; the service does not close it.
        model: the model's name in the API.
        state: "starting" until the model has answered once, "draining" from SIGTERM on; new jobs
            are refused unless it is "ready".
        created: when it was made, in seconds since 1970.
        batches: files and batches, while the server runs and has a data directory.
    """

    llm: AsyncLLM
    model: str
    config: ServerConfig
    keys: Keyring
    isolation: Isolation
    gate: Gate
    metrics: Metrics
    state: State = "ready"
    created: int = field(default_factory=lambda: int(time.time()))
    batches: BatchJobs | None = None

    @classmethod
    def of(
        cls,
        llm: AsyncLLM,
        *,
        model: str = "nano",
        config: ServerConfig | None = None,
        keys: Keyring | None = None,
        secret: bytes | None = None,
    ) -> Service:
        """A service with a gate and metrics of its own."""
        config = config or ServerConfig()
        return cls(
            llm=llm,
            model=config.model_name or model,
            config=config,
            keys=keys or Keyring(),
            isolation=Isolation(secret),
            gate=Gate(config, llm.max_batch),
            metrics=Metrics(config.model_name or model, llm),
        )

    async def answer(self, caller: Caller, job: Job) -> AsyncGenerator[Chunk | Result, None]:
        """Run a job: a chunk per token, and a result per prompt after its last chunk.

        Closing the generator, or cancelling who waits for it, ends the job within a step and gives
        its place back. Close it (`contextlib.aclosing`): a generator that is only dropped runs on
        until it is collected.

        Raises:
            ApiError: 429 or 503 before the first chunk; 503 when the server goes down; 504 when
                `request_seconds` are over.
            PromptError, ParameterError: the engine refuses the job; before the first chunk.
        """
        if self.state != "ready":
            raise ApiError(
                503,
                f"the server is {self.state}: try again later",
                code="not_ready",
                headers={"Retry-After": "5"},
            )
        ticket = self.gate.enter(caller, answers=job.answers, prompt_tokens=job.prompt_tokens)
        open_prompts = set(range(len(job.prompts)))
        started: set[int] = set()
        last: dict[tuple[int, int], float] = {}
        events = self.llm.events(
            job.prompts,
            job.params,
            tenant=caller.tenant,
            salt=self.isolation.salt(caller.tenant, job.cache_salt),
        )
        deadline = time.monotonic() + self.config.request_seconds
        try:
            async with aclosing(events):
                while open_prompts:
                    item = await _before(deadline, events, self.config.request_seconds)
                    if isinstance(item, Result):
                        open_prompts.discard(item.index)
                        self.metrics.finished(caller, item, job.params[item.index])
                    else:
                        if item.index not in started:
                            started.add(item.index)
                            ticket.started(job.params[item.index].n, len(job.prompts[item.index]))
                        ticket.wrote(len(item.token_ids))
                        now = time.perf_counter()
                        place = (item.index, item.output_index)
                        if place in last and item.token_ids:
                            self.metrics.token_gap(now - last[place])
                        last[place] = now
                    yield item
        finally:
            ticket.close()
            if open_prompts:
                self.metrics.aborted(caller, len(open_prompts))


async def _before(
    deadline: float, events: AsyncGenerator[Chunk | Result, None], seconds: float
) -> Chunk | Result:
    """The next event, if it comes in time."""
    try:
        return await asyncio.wait_for(anext(events), max(0.0, deadline - time.monotonic()))
    except asyncio.TimeoutError:
        raise ApiError(
            504,
            f"no complete answer within {seconds:g} seconds: ask for fewer tokens",
            code="timeout",
        ) from None
    except StopAsyncIteration:
        raise ForewordError("the engine was closed before the answer was complete") from None
