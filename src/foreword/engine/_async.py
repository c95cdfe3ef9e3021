"""`AsyncLLM`: many callers at once, one thread that steps the engine for all of them."""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from foreword._errors import ForewordError
from foreword.engine._choices import PrefixChoice, names_of
from foreword.engine._gauges import Gauges
from foreword.engine._llm import LLM, pair
from foreword.engine._mail import Caller, Place, call, distribute, fail, settle
from foreword.engine._params import SamplingParams
from foreword.engine._pins import PIN_ATTEMPTS, NotComputedError
from foreword.engine._results import Chunk, Result
from foreword.engine._saved import read_file, write_file

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from os import PathLike
    from pathlib import Path

    from foreword.engine._engine import Engine
    from foreword.engine._events import Event
    from foreword.engine._pins import Pin
    from foreword.engine._prompts import Prompt
    from foreword.engine._sequence import Request
    from foreword.engine._stats import PrefixStats
    from foreword.engine._volume import PrefixInfo
    from foreword.models import LoadedModel, Tokenizer, Weights
    from foreword.prefixes import Prefix


T = TypeVar("T")


class AsyncLLM:
    """The engine behind `async`: `stream` yields chunks, `generate` awaits a result.

    Requests of all callers run in the same batches and share prefixes. Cancelling a call, or
    closing its iterator, aborts its request within a step. Takes the arguments of `LLM`.

        async with AsyncLLM("nano") as llm:
            async for chunk in llm.stream("Once upon"):
                print(chunk.text, end="")
    """

    def __init__(self, model: str | PathLike[str] | LoadedModel = "nano", **settings: Any) -> None:
        self._llm = LLM(model, **settings)
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._places: dict[int, Place] = {}
        self._closed = False
        self._door = threading.Lock()  # nothing is put behind the command that ends the thread
        self._thread = threading.Thread(target=self._work, name="foreword-engine", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> AsyncLLM:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self.close)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._llm.tokenizer

    @property
    def max_context(self) -> int:
        """The longest text in tokens, prompt and answer."""
        return self._llm.engine.max_context

    @property
    def max_batch(self) -> int:
        """Answers that run at once."""
        return self._llm.engine.config.max_batch

    @property
    def capacity(self) -> int:
        """Tokens the cache can hold when one answer has it alone."""
        return self._llm.engine.capacity

    def encode(self, prompt: Prompt, name: str = "the prompt") -> list[int]:
        """Token ids of a prompt that this model can answer; any thread may call it.

        Raises:
            PromptError: it cannot; the message calls the prompt `name`.
        """
        return self._llm.encode(prompt, name)

    def gauges(self) -> Gauges:
        """What the engine holds and has done, at this moment; any thread may ask. O(1)."""
        return Gauges.of(self._llm.engine)

    @property
    def stats(self) -> PrefixStats:
        """Statistics since the engine was made."""
        return self._llm.stats

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        salt: str = "",
        prefix: PrefixChoice = None,
    ) -> Result:
        """Answer one prompt.

        `tenant` is whom a fair policy charges; only requests of the same `salt` share prompts.
        `prefix` is the learned prefix in front of the prompt: a name that `load_prefix` was given,
        or several, joined in this order.

        Raises:
            PromptError: the prompt is unusable.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that cannot be joined.
        """
        async for item in self.events([prompt], params, tenant=tenant, salt=salt, prefix=prefix):
            if isinstance(item, Result):
                return item
        raise ForewordError("the engine was closed before the answer was complete")

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        tenant: str = "",
        salt: str = "",
        prefix: PrefixChoice = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Answer one prompt piece by piece, a chunk per token.

        `tenant`, `salt` and `prefix` as `generate`. Should the prefix's files have gone meanwhile,
        the last chunk's `finish_reason` is "error".

        Raises:
            PromptError: the prompt is unusable.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that cannot be joined.
        """
        async for item in self.events([prompt], params, tenant=tenant, salt=salt, prefix=prefix):
            if isinstance(item, Chunk):
                yield item

    async def events(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tenant: str = "",
        salt: str = "",
        prefix: PrefixChoice = None,
    ) -> AsyncGenerator[Chunk | Result, None]:
        """Answer several prompts at once: each a chunk per token, then its result.

        `index` of a chunk or result says which prompt it belongs to. The prompts are taken all or
        none. Closing the iterator, or cancelling the task that waits for it, aborts them within a
        step. `params` is one for all, or one per prompt; `tenant`, `salt` and `prefix`, for all
        prompts alike, as `generate`. What of the prefix must be read from disk is read on another
        thread, so nobody else waits for it.

        Raises:
            PromptError: a prompt is unusable; none has run.
            ParameterError: not as many `params` as prompts.
            UnknownPrefixError: a prefix that is not loaded.
            PrefixError: prefixes that cannot be joined.
        """
        many = pair(prompts, params)
        names = names_of(prefix)
        shelf = self._llm.engine.shelf
        if names and not shelf.is_warm(names):
            await asyncio.to_thread(shelf.warm, names)
        caller = Caller(asyncio.get_running_loop(), asyncio.Queue())
        requests: list[Request] = []
        add = partial(self._llm.engine.add, tenant=tenant, salt=salt, prefix=names)
        self._send(lambda: self._submit(many, add, caller, requests))
        left = len(many)
        try:
            while left:
                item = await caller.inbox.get()
                if isinstance(item, BaseException):
                    raise item
                left -= isinstance(item, Result)
                yield item
        finally:
            self._inbox.put(lambda: self._abandon(requests))

    async def run(self, task: Callable[[Engine], T]) -> T:
        """Call `task` with the engine, on its thread between two steps; returns what it returns.

        Everybody's answers wait while it runs, so it should be short. What it raises is raised.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._send(lambda: self._perform(task, loop, future))
        return await future

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def abort_all(self, reason: str) -> None:
        """End every call there is with a `ForewordError` of that text; later calls are taken."""
        self._inbox.put(lambda: self._abort_all(ForewordError(reason)))

    @property
    def prefixes(self) -> Mapping[str, PrefixInfo]:
        """The learned prefixes by name; a view that changes with them. Any thread may read it."""
        return self._llm.prefixes

    async def load_prefix(
        self, name: str, source: Prefix | str | PathLike[str], *, pin: bool = False
    ) -> PrefixInfo:
        """As `LLM.load_prefix`; the engine waits for no disk.

        Raises:
            ParameterError, PrefixError: as `LLM.load_prefix`.
        """
        shelf = self._llm.engine.shelf
        volume = await asyncio.to_thread(shelf.read, name, source, pin=pin)
        return await self.run(lambda engine: engine.put_prefix(volume))

    async def unload_prefix(self, name: str, *, drain: bool = False) -> None:
        """As `LLM.unload_prefix`; with `drain` it does not wait for the last user either.

        Raises:
            UnknownPrefixError: no such prefix.
            ParameterError: requests use it, and `drain` is not set.
        """
        await self.run(lambda engine: engine.unload_prefix(name, drain=drain))

    async def pin(self, name: str, prompt: Prompt, *, public: bool = True, salt: str = "") -> Pin:
        """Compute a prompt, if it is not in the cache yet, and keep it there; see `Engine.pin`.

        Raises:
            ParameterError, PromptError: as `Engine.pin`, or the prompt is unusable.
        """
        ids = self.encode(prompt, f"pin {name!r}")

        def take(engine: Engine) -> Pin:
            return engine.pin(name, ids, public=public, salt=salt)

        for _ in range(PIN_ATTEMPTS):
            try:
                return await self.run(take)
            except NotComputedError:  # not yet, or it was evicted in between
                await self.generate(ids, SamplingParams(max_tokens=1), salt=salt)
        return await self.run(take)

    async def unpin(self, name: str) -> None:
        """Let a pinned prefix go; it stays in the cache until its memory is needed.

        Raises:
            ParameterError: no such pin.
        """
        await self.run(lambda engine: engine.unpin(name))

    async def save_pin(self, name: str, directory: str | PathLike[str]) -> Path:
        """As `Engine.save_pin`; the engine waits for the copy in memory, not for the disk.

        Raises:
            ParameterError: no such pin.
            SavedPrefixError: it cannot be written.
        """
        saved = await self.run(lambda engine: engine.copy_pin(name))
        return await asyncio.to_thread(write_file, saved, directory)

    async def load_pin(self, path: str | PathLike[str], *, salt: str = "") -> Pin:
        """As `Engine.load_pin`; the engine waits for the copy from memory, not for the disk.

        Raises:
            SavedPrefixError: no such file, damaged, another model's, or too large.
            ParameterError, PromptError: as `Engine.pin`.
        """
        saved = await asyncio.to_thread(read_file, path)
        return await self.run(lambda engine: engine.restore_pin(saved, salt=salt))

    async def update_weights(self, source: Weights) -> None:
        """As `LLM.update_weights`; calls that come meanwhile wait, and get the new weights.

        Raises:
            ModelError: missing, unknown or misshapen tensors, or another architecture.
            ParameterError: requests are running or in line, or learned prefixes are loaded.
        """
        for pin in await self.run(lambda engine: engine.update_weights(source)):
            await self.pin(pin.name, list(pin.tokens), public=pin.public, salt=pin.salt)

    def close(self) -> None:
        """Abort what runs and end the thread; closing twice does nothing."""
        with self._door:
            if not self._closed:
                self._closed = True
                self._inbox.put(None)
        self._thread.join()

    def _send(self, command: Callable[[], None]) -> None:
        """Have a command carried out on the engine's thread, after those sent before."""
        with self._door:
            if self._closed:
                raise ForewordError("this AsyncLLM is closed")
            self._inbox.put(command)

    # -- on the engine's thread --------------------------------------------------------------------

    def _perform(
        self,
        task: Callable[[Engine], T],
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[T],
    ) -> None:
        result: T
        try:
            result = task(self._llm.engine)
        except Exception as error:
            call(loop, fail, future, error)
        else:
            call(loop, settle, future, result)

    def _submit(
        self,
        many: Sequence[tuple[Prompt, SamplingParams]],
        add: Callable[[list[int], SamplingParams], Request],
        caller: Caller,
        requests: list[Request],
    ) -> None:
        try:
            prompts = [
                self._llm.encode(prompt, f"prompt {i}") for i, (prompt, _) in enumerate(many)
            ]
            for ids, (_, params) in zip(prompts, many, strict=True):
                requests.append(add(ids, params))
        except Exception as error:
            self._abandon(requests)
            caller.send(error)
            return
        for index, request in enumerate(requests):
            self._places[request.id] = Place(caller, index)

    def _abandon(self, requests: list[Request]) -> None:
        for request in requests:
            self._places.pop(request.id, None)
            self._llm.engine.abort(request)

    def _abort_all(self, error: ForewordError) -> None:
        self._drain(error)
        self._llm.engine.abort_all()

    def _work(self) -> None:
        engine = self._llm.engine
        while True:
            try:
                while True:
                    command = self._inbox.get(block=not engine.has_work)
                    if command is None:
                        self._drain(ForewordError("the engine was closed"))
                        engine.abort_all()
                        return
                    command()
            except queue.Empty:
                pass
            try:
                self._deliver(engine.step())
            except Exception as error:  # the engine is broken: everybody must hear of it
                self._drain(error)
                engine.abort_all()

    def _deliver(self, events: list[Event]) -> None:
        """Hand a step's events over, with one call into each event loop."""
        mail: dict[asyncio.AbstractEventLoop, list[tuple[Caller, Chunk | Result]]] = {}
        finished: dict[int, Request] = {}  # their results follow the last chunk of every answer
        for event in events:
            place = self._places.get(event.request.id)
            if place is None:
                continue
            items = mail.setdefault(place.caller.loop, [])
            items.append((place.caller, event.chunk(place.prompt)))
            if event.request.finished:
                finished[event.request.id] = event.request
        for request in finished.values():
            place = self._places.pop(request.id)
            mail[place.caller.loop].append((place.caller, request.result(place.prompt)))
        for loop, items in mail.items():
            call(loop, distribute, items)

    def _drain(self, error: BaseException) -> None:
        for caller in {place.caller for place in self._places.values()}:
            caller.send(error)
        self._places.clear()
