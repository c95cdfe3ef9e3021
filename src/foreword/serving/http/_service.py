"""The service: what every route works with, and the one way from a job to its answers."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import anyio

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine import AsyncLLM, Chunk, Result, SamplingParams
from foreword.serving.http._config import ServerConfig
from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http.guard._gate import Gate, Ticket
from foreword.serving.http.guard._isolation import Isolation
from foreword.serving.http.guard._keys import Caller, Keyring
from foreword.serving.http.watch._metrics import Metrics

if TYPE_CHECKING:
    from foreword.serving.http.batches._batch_jobs import BatchJobs

State = Literal["starting", "ready", "draining"]

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def seconds_asked(header: str | None) -> float | None:
    """The value of `x-request-timeout`: seconds that the caller will wait; None without one.

    Raises:
        ApiError: 400, it is not a number above 0.
    """
    if header is None:
        return None
    if not _SECONDS.fullmatch(header) or not float(header):
        raise ApiError(
            400,
            "the header x-request-timeout must be seconds above 0, such as 30 or 2.5",
            code="invalid_timeout",
        )
    return float(header)


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine: prompts as token ids, one `SamplingParams` each.

    Attributes:
        prefixes: names of the learned prefixes in front of every prompt, in their order; the
            caller may use them, which is checked where the job is made.
        cache_salt: the user's own, "" for none; the server makes the real one of it.
        user: whom a fair policy charges where no keys are set; it splits no cache.
        seconds: how long the caller waits; it can only shorten the server's `request_seconds`.
    """

    prompts: tuple[list[int], ...]
    params: tuple[SamplingParams, ...]
    prefixes: tuple[str, ...] = ()
    cache_salt: str = ""
    user: str = ""
    seconds: float | None = None

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
        keys = keys or Keyring()
        gate = Gate(config, llm.max_batch, weights=keys.weights)
        return cls(
            llm=llm,
            model=config.model_name or model,
            config=config,
            keys=keys,
            isolation=Isolation(secret),
            gate=gate,
            metrics=Metrics(config.model_name or model, llm, gate.load),
        )

    async def answer(self, caller: Caller, job: Job) -> AsyncGenerator[Chunk | Result, None]:
        """Run a job: a chunk per token, and a result per prompt after its last chunk.

        Closing the generator, or cancelling who waits for it, ends the job within a step and gives
        its place back. Close it (`contextlib.aclosing`): a generator that is only dropped runs on
        until it is collected.

        Raises:
            ApiError: 400, 429 or 503 before the first chunk; 503 when the server goes down; 504
                when the time is over.
            PromptError, ParameterError: the engine refuses the job; before the first chunk.
        """
        if self.state != "ready":
            raise not_ready(self.state)
        ticket = self.gate.enter(caller, answers=job.answers, prompt_tokens=job.prompt_tokens)
        course = _Course(caller, job, ticket, self.metrics)
        seconds = min(self.config.request_seconds, job.seconds or self.config.request_seconds)
        deadline = anyio.current_time() + seconds
        places = self._places(job.prefixes)
        try:
            salt = self.isolation.salt(caller.tenant, job.cache_salt)
            tenant = caller.tenant or job.user
            events = self.llm.events(
                job.prompts, job.params, tenant=tenant, salt=salt, prefix=job.prefixes or None
            )
            async with aclosing(events):
                while course.left:
                    item = await _before(deadline, seconds, events)
                    if places and isinstance(item, Result) and item.error is not None:
                        item = _without(places, item, item.error)
                    course.saw(item)
                    yield item
        except BaseException as error:
            course.broke(error)
            raise
        finally:
            ticket.close()

    def _places(self, prefixes: Sequence[str]) -> dict[str, str]:
        """Directories of these prefixes, and the names that callers may know instead."""
        found = [self.llm.prefixes.get(name) for name in prefixes]
        return {str(info.source): info.name for info in found if info is not None and info.source}


def _without(places: Mapping[str, str], result: Result, error: str) -> Result:
    """The result of a prompt whose prefix could not be read, without the machine's own paths."""
    for place, name in places.items():
        error = error.replace(place, name)
    return replace(result, error=error)


class _Course:
    """How far a job has come, told to its ticket and to the metrics as it goes.

    `left` has the answers that are still open, by prompt; a prompt goes with its result.
    """

    def __init__(self, caller: Caller, job: Job, ticket: Ticket, metrics: Metrics) -> None:
        self._caller = caller
        self._job = job
        self._ticket = ticket
        self._metrics = metrics
        self._waiting = set(range(len(job.prompts)))
        self._last: dict[tuple[int, int], float] = {}  # when an answer's last token came
        self.left = {index: params.n for index, params in enumerate(job.params)}

    def saw(self, item: Chunk | Result) -> None:
        index = item.index
        if index in self._waiting:
            self._waiting.discard(index)
            self._ticket.started(self._job.params[index].n, len(self._job.prompts[index]))
        if isinstance(item, Result):
            self._ticket.ended(self.left.pop(index))
            self._metrics.finished(self._caller, item, self._job.params[index], self._job.prefixes)
            return
        self._ticket.wrote(len(item.token_ids))
        place = (index, item.output_index)
        if item.token_ids:
            now = time.perf_counter()
            if place in self._last:
                self._metrics.token_gap(now - self._last[place])
            self._last[place] = now
        if item.finish_reason is not None:
            self._last.pop(place, None)
            self.left[index] -= 1
            self._ticket.ended(1)

    def broke(self, error: BaseException) -> None:
        """The job ended by an error, or because nobody wants it any more."""
        if isinstance(error, (PromptError, ParameterError)):  # it never ran
            return
        if self.left:
            answers = sum(self._job.params[index].n for index in self.left)
            failed = isinstance(error, Exception) and not isinstance(error, ApiError)
            self._metrics.aborted(self._caller, answers, failed=failed)


async def _before(
    deadline: float, seconds: float, events: AsyncGenerator[Chunk | Result, None]
) -> Chunk | Result:
    """The next event, if it comes in time.

    A cancel scope and not `asyncio.wait_for`, which before Python 3.12 loses a cancellation that
    comes together with the event.
    """
    try:
        with anyio.fail_after(deadline - anyio.current_time()):
            return await anext(events)
    except TimeoutError:
        raise ApiError(
            504,
            f"no complete answer within {seconds:g} seconds: ask for fewer tokens",
            code="timeout",
        ) from None
    except StopAsyncIteration:
        raise ForewordError("the engine was closed before the answer was complete") from None
