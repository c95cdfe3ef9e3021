"""`AsyncLLM`: many callers at once, one thread that steps the engine for all of them."""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from foreword._errors import ForewordError
from foreword.engine._llm import LLM
from foreword.engine._params import SamplingParams
from foreword.engine._results import Chunk, Result

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from os import PathLike

    from foreword.engine._engine import Event
    from foreword.engine._prompts import Prompt
    from foreword.engine._sequence import Request
    from foreword.engine._stats import PrefixStats
    from foreword.models import LoadedModel, Tokenizer


class _Caller(NamedTuple):
    """Where a request's events go: a queue that lives in its caller's event loop."""

    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[Chunk | Result | BaseException]

    def send(self, item: Chunk | Result | BaseException) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.inbox.put_nowait, item)


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
        self._callers: dict[int, _Caller] = {}
        self._closed = False
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
    ) -> Result:
        """Answer one prompt.

        `tenant` is whom a fair policy charges; only requests of the same `salt` share prefixes.

        Raises:
            PromptError: the prompt is unusable.
        """
        async for item in self._events(prompt, params, tenant, salt):
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
    ) -> AsyncGenerator[Chunk, None]:
        """Answer one prompt piece by piece, a chunk per token; `tenant` and `salt` as `generate`.

        Raises:
            PromptError: the prompt is unusable.
        """
        async for item in self._events(prompt, params, tenant, salt):
            if isinstance(item, Chunk):
                yield item

    def close(self) -> None:
        """Abort what runs and end the thread; closing twice does nothing."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
            self._thread.join()

    async def _events(
        self, prompt: Prompt, params: SamplingParams | None, tenant: str, salt: str
    ) -> AsyncGenerator[Chunk | Result, None]:
        if self._closed:
            raise ForewordError("this AsyncLLM is closed")
        caller = _Caller(asyncio.get_running_loop(), asyncio.Queue())
        requests: list[Request] = []
        add = partial(
            self._llm.engine.add, params=params or SamplingParams(), tenant=tenant, salt=salt
        )
        self._inbox.put(lambda: self._submit(prompt, add, caller, requests))
        try:
            while True:
                item = await caller.inbox.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Result):
                    return
        finally:
            self._inbox.put(lambda: self._abandon(requests))

    # -- on the engine's thread --------------------------------------------------------------------

    def _submit(
        self,
        prompt: Prompt,
        add: Callable[[list[int]], Request],
        caller: _Caller,
        requests: list[Request],
    ) -> None:
        try:
            request = add(self._llm.encode(prompt))
        except Exception as error:
            caller.send(error)
            return
        requests.append(request)
        self._callers[request.id] = caller

    def _abandon(self, requests: list[Request]) -> None:
        for request in requests:
            self._callers.pop(request.id, None)
            self._llm.engine.abort(request)

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
        for event in events:
            caller = self._callers.get(event.request.id)
            if caller is None:
                continue
            caller.send(event.chunk())
            if event.request.finished:
                caller.send(event.request.result(0))
                del self._callers[event.request.id]

    def _drain(self, error: BaseException) -> None:
        for caller in self._callers.values():
            caller.send(error)
        self._callers.clear()
