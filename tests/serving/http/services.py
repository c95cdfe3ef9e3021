"""Services to try things on: around nano, and around an engine that does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from foreword.engine import AsyncLLM, Chunk, Engine, Result, SamplingParams
from foreword.serving.http import Caller, Job, ServerConfig, Service

PROMPT = list(range(40, 70))
ALICE = Caller("alice")


def job(*prompts: list[int], n: int = 1, max_tokens: int = 8, **settings: Any) -> Job:
    many = prompts or (PROMPT,)
    params = SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=True, seed=1)
    return Job(many, (params,) * len(many), **settings)


async def fresh(llm: AsyncLLM, **settings: Any) -> Service:
    """A service of its own around nano, with nothing in the cache."""
    await llm.run(lambda engine: engine.tree.clear())
    return Service.of(llm, **settings)


async def whole(service: Service, work: Job, caller: Caller = ALICE) -> list[Chunk | Result]:
    async with aclosing(service.answer(caller, work)) as events:
        return [item async for item in events]


def results(items: list[Chunk | Result]) -> list[Result]:
    found = [item for item in items if isinstance(item, Result)]
    return sorted(found, key=lambda result: result.index)


async def assert_nothing_left(service: Service) -> None:
    """No place, no lease, no request; the tree is sound."""

    def look(engine: Engine) -> tuple[bool, int, int]:
        engine.tree.check()
        return engine.has_work, engine.tree.used_pages, engine.tree.evictable_pages

    has_work, used, evictable = await service.llm.run(look)
    assert not has_work
    assert used == evictable
    gate = service.gate
    assert (gate.answers, gate.waiting, gate.waiting_tokens, gate.load()) == (0, 0, 0, {})


def ends(service: Service) -> dict[str, float]:
    """Answers by how they ended, as the metrics tell."""
    found = service.metrics._success.collect()
    samples = next(iter(found)).samples
    return {
        s.labels["finished_reason"]: s.value
        for s in samples
        if s.name.endswith("_total") and s.value
    }


class StandIn:
    """An engine that does as it is told: each item is an event, an error, or a wait."""

    max_batch = 4

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.closed = 0
        self.asked: list[dict[str, str]] = []
        self.waits = asyncio.Event()

    def gauges(self) -> Any:
        raise NotImplementedError

    async def events(
        self, prompts: Any, params: Any, **settings: str
    ) -> AsyncGenerator[Chunk | Result, None]:
        self.asked.append(settings)
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    self.waits.set()
                    await asyncio.Event().wait()
                yield item
        finally:
            self.closed += 1


def stood_in(monkeypatch: pytest.MonkeyPatch, *script: Any, **config: Any) -> Any:
    monkeypatch.setattr("foreword.serving.http.watch._metrics.EngineCollector", _NoEngine)
    llm: Any = StandIn(*script)
    return Service.of(llm, config=ServerConfig(**config)), llm


class _NoEngine:
    def __init__(self, *args: Any) -> None:
        pass

    def collect(self) -> Iterator[Any]:
        return iter(())


CHUNK = Chunk(0, 0, "a", (1,))
