"""The lines of one batch on their way through the service, and their records on the way back."""

from __future__ import annotations

import asyncio
import logging
import random
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError, ParameterError, PromptError
from foreword.engine import Result
from foreword.serving._batch_answers import line_answer, line_prompt, line_refusal
from foreword.serving._batch_lines import BatchLine, read_lines
from foreword.serving._batch_run import BatchDefaults, line_params
from foreword.serving._errors import LineError
from foreword.serving._prefix_names import prefix_names
from foreword.serving._records import error_record
from foreword.serving._result_file import ResultFile
from foreword.serving.http._errors import ApiError
from foreword.serving.http._service import Job, Service
from foreword.serving.http.api._choice import choose
from foreword.serving.http.api._texts import encode
from foreword.serving.http.batches._batch_seats import Seats
from foreword.serving.http.guard._keys import Caller

AT_ONCE = 2
"""Batches of one tenant that run at the same time."""

log = logging.getLogger("foreword.server.batches")

_WINDOW_LINES = 512
_WINDOW_TOKENS = 2**17
_LONGEST_WAIT = 60.0
_LOOK = 0.05
_FAULTS = 3


class Halt(Exception):  # noqa: N818 - not a fault: the server goes down, or is not up yet
    """No line is answered for now; what is recorded stays, the rest is for later."""


@dataclass(frozen=True)
class _Ready:
    """A line that can be run."""

    line: BatchLine
    job: Job
    model: str


class BatchWork:
    """Runs the lines of an input file that have no record yet.

    Lines are read in windows, and within a window those that begin alike follow each other, so that
    they meet in the cache. A line that is refused because the server is full waits and asks again.

    Args:
        caller: who is charged, and whose limits and cache hold.
        endpoint: the one that the batch was made for; lines for another one are errors.
        out: gets the records; used only on `disk`.
        seats: places that the batches of a server share.
        disk: one thread, so that records follow each other whatever is cancelled meanwhile.
        reader: one thread, so that many batches do not read at the same time.
        defaults: for lines that do not say otherwise.
    """

    def __init__(
        self,
        service: Service,
        caller: Caller,
        source: Path,
        out: ResultFile,
        *,
        endpoint: str,
        seats: Seats,
        disk: Executor,
        reader: Executor,
        defaults: BatchDefaults,
    ) -> None:
        self._service = service
        self._caller = caller
        self._source = source
        self._out = out
        self._kind = "chat" if endpoint.endswith("/chat/completions") else "completion"
        self._endpoint = endpoint
        self._seats = seats
        self._disk = disk
        self._reader = reader
        self._defaults = defaults
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers = 0
        self._away: set[asyncio.Task[None]] = set()  # lines that were sent away for a while
        self._failure: BaseException | None = None
        self._halted = asyncio.Event()

    def drain(self) -> None:
        """Feed no further line; those that run may end."""
        self._halted.set()

    async def run(self) -> bool:
        """Answer the lines; whether all of them have a record now. Cancelling aborts what runs.

        Raises:
            BatchFileError: the input cannot be read, or the records cannot be written.
            Halt: the service takes no jobs.
        """
        loop = asyncio.get_running_loop()
        lines = self._lines()
        try:
            while not self._halted.is_set():
                window = await loop.run_in_executor(self._reader, self._window, lines)
                if not window:
                    break
                for item in window:
                    await self._feed(item)
                    if self._halted.is_set():
                        break
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._failure is not None:
            raise self._failure
        return not self._halted.is_set()

    def expire(self, message: str) -> None:
        """Give every line that has no record the error that its time ran out; blocks.

        Raises:
            BatchFileError: as `run`.
        """
        for line in self._lines():
            if isinstance(line, LineError):
                if line.line not in self._out.finished:
                    self._out.write(_line_error(line))
            elif line.number not in self._out.finished:
                self._out.write(line_refusal(line, ForewordError(message), code="batch_expired"))

    # -- reading, in a thread ----------------------------------------------------------------------

    def _lines(self) -> Iterator[BatchLine | LineError]:
        # A line is a request, and may be as long as the body of one.
        return read_lines(self._source, max_line=self._service.config.max_body)

    def _window(self, lines: Iterator[BatchLine | LineError]) -> list[_Ready | dict[str, Any]]:
        """The next lines that have no record, ready to run, and records of those that cannot."""
        ready: list[_Ready] = []
        refused: list[_Ready | dict[str, Any]] = []
        tokens = 0
        while len(ready) + len(refused) < _WINDOW_LINES and tokens < _WINDOW_TOKENS:
            line = next(lines, None)
            if line is None:
                break
            if isinstance(line, LineError):
                if line.line not in self._out.finished:
                    refused.append(_line_error(line))
            elif line.number not in self._out.finished:
                try:
                    item = self._prepare(line)
                except ApiError as error:
                    refused.append(line_refusal(line, error, code=error.code))
                except ForewordError as error:
                    refused.append(line_refusal(line, error))
                else:
                    ready.append(item)
                    tokens += item.job.prompt_tokens
        # Any order that keeps equal beginnings together will do.
        ready.sort(key=lambda item: array("q", item.job.prompts[0]).tobytes())
        return [*refused, *ready]

    def _prepare(self, line: BatchLine) -> _Ready:
        if line.kind != self._kind:
            raise ApiError(
                400,
                f"this batch is for {self._endpoint}, the line is for another endpoint: put it "
                "into a batch of its own",
                code="mismatched_endpoint",
            )
        body = dict(line.body)
        model = _text(body.pop("model", None), "model")
        names = prefix_names(body.pop("prefix", None))
        choice = choose(self._service, self._caller, model, names)
        salt = _text(body.pop("cache_salt", None), "cache_salt")
        user = _text(body.pop("user", None), "user")
        limit = self._caller.limits.max_tokens
        defaults = self._defaults
        if limit is not None:
            defaults = replace(defaults, max_tokens=min(defaults.max_tokens, limit))
        params = line_params(replace(line, body=body), defaults)
        if params.n > self._service.config.max_n:
            raise ParameterError(
                f"n is {params.n}, the limit is {self._service.config.max_n}: write more lines"
            )
        if limit is not None and params.max_tokens > limit:
            raise ParameterError(
                f"max_tokens is {params.max_tokens}, the limit of your key is {limit}"
            )
        prompt = line_prompt(line, self._service.llm.tokenizer)
        ids = encode(self._service, prompt, "the prompt", choice.taken)
        job = Job((ids,), (params,), prefixes=choice.names, cache_salt=salt or "", user=user or "")
        return _Ready(line, job, choice.model)

    # -- answering ---------------------------------------------------------------------------------

    async def _feed(self, item: _Ready | dict[str, Any]) -> None:
        if isinstance(item, dict):
            await self._write(item)
            return
        seats = item.job.answers
        await self._room(seats)
        await self._seats.take(seats)
        if self._halted.is_set():
            self._seats.give(seats)
            return
        task = asyncio.get_running_loop().create_task(self._answer(item))
        self._tasks.add(task)
        self._answers += seats
        task.add_done_callback(lambda task: self._ended(task, seats))

    async def _room(self, answers: int) -> None:
        """Wait for a free seat, so as to take no place in line from those who wait for an answer.

        One line is fed whatever the others do: a batch goes on slowly on a server that is always
        full. A tenant's batches leave half of what it may have at one time to its other requests.
        """
        limit = self._caller.limits.concurrent
        most = self._seats.total if limit is None else max(1, limit // (2 * AT_ONCE))
        gate, seats = self._service.gate, self._service.llm.max_batch
        while self._tasks and not self._halted.is_set():
            if self._answers + answers <= most and gate.answers + answers <= seats:
                return
            await asyncio.wait(self._tasks, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)

    def _ended(self, task: asyncio.Task[None], seats: int) -> None:
        self._answers -= seats
        self._tasks.discard(task)
        if task in self._away:
            self._away.discard(task)
        else:
            self._seats.give(seats)
        if task.cancelled() or task.exception() is None:
            return
        self._halted.set()
        if self._failure is None or isinstance(self._failure, Halt):
            self._failure = task.exception()
        if not isinstance(task.exception(), Halt):  # nothing can be recorded any more
            for other in self._tasks:
                other.cancel()

    async def _answer(self, item: _Ready) -> None:
        """Ask until there is a record for the line."""
        faults = 0
        while True:
            started = False

            def begins() -> None:
                nonlocal started
                started = True

            try:
                result = await self._ask(item, begins)
            except ApiError as error:
                if self._service.state != "ready":
                    raise Halt from error
                if _full(error):
                    await self._stay_away(error, item.job.answers)
                    continue
                if error.status == 504 and not started:
                    continue  # its time ran out in line, which is not its fault
                record = line_refusal(item.line, error, code=error.code or "refused")
            except (PromptError, ParameterError) as error:
                record = line_refusal(item.line, error)
            except ForewordError as error:  # the engine was closed
                raise Halt from error
            except Exception as error:
                # A fault of the engine hits all that run in it: only one of them is to blame.
                log.error("a line of a batch failed", exc_info=error)
                faults += 1
                if faults < _FAULTS:
                    continue
                failed = ForewordError("the engine failed on this request each time it was tried")
                record = line_refusal(item.line, failed)
            else:
                tokenizer = self._service.llm.tokenizer
                record = line_answer(item.line, result, model=item.model, tokenizer=tokenizer)
            await self._write(record)
            return

    async def _ask(self, item: _Ready, begins: Callable[[], None]) -> Result:
        async with aclosing(self._service.answer(self._caller, item.job)) as events:
            async for event in events:
                if isinstance(event, Result):
                    return event
                begins()
        raise ForewordError("the engine was closed before the answer was complete")

    async def _stay_away(self, error: ApiError, seats: int) -> None:
        """Leave the seats to other batches for as long as the server says."""
        task = asyncio.current_task()
        assert task is not None
        self._away.add(task)
        self._seats.give(seats)
        await self._wait(error)
        await self._seats.take(seats)
        self._away.discard(task)

    async def _wait(self, error: ApiError) -> None:
        """The time that the server says, and not for all lines the same."""
        try:
            seconds = float(error.headers.get("Retry-After", "1"))
        except ValueError:
            seconds = 1.0
        seconds = min(max(seconds, 0.05), _LONGEST_WAIT) * random.uniform(0.75, 1.25)
        try:
            await asyncio.wait_for(self._halted.wait(), seconds)
        except asyncio.TimeoutError:
            return
        raise Halt

    async def _write(self, record: dict[str, Any]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._out.write, record)


def _line_error(error: LineError) -> dict[str, Any]:
    return error_record(error.line, error.custom_id, error.code, str(error))


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ParameterError(f"{name} must be a text")
    return value


def _full(error: ApiError) -> bool:
    """Whether the server only has no room now."""
    return error.status in (429, 503) and error.headers.get("x-should-retry") != "false"
