"""From the engine's thread to its callers: each hears in an event loop of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from foreword.engine._results import Chunk, Result

T = TypeVar("T")


class Caller(NamedTuple):
    """Where a call's events go: a queue that lives in its caller's event loop."""

    loop: asyncio.AbstractEventLoop
    inbox: asyncio.Queue[Chunk | Result | BaseException]

    def send(self, item: Chunk | Result | BaseException) -> None:
        call(self.loop, self.inbox.put_nowait, item)


class Place(NamedTuple):
    """A request's caller, and which of the call's prompts it answers."""

    caller: Caller
    prompt: int


def call(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop was closed: nobody is there to hear
        return


def distribute(items: list[tuple[Caller, Chunk | Result]]) -> None:
    for caller, item in items:
        caller.inbox.put_nowait(item)


def settle(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def fail(future: asyncio.Future[T], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
