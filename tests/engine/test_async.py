"""Many callers, one engine."""

from __future__ import annotations

import asyncio

import pytest

from foreword import ForewordError
from foreword.engine import LLM, AsyncLLM, SamplingParams

SHAPE = "llama-mqa-d128"


@pytest.fixture
def llm(loaded_model):
    llm = AsyncLLM(loaded_model(SHAPE), kv_memory="8MiB")
    yield llm
    llm.close()


def test_callers_share_and_get_their_own(llm, loaded_model):
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9, i] for i in range(8)]
    params = SamplingParams(max_tokens=6)

    async def all_of_them():
        return await asyncio.gather(*(llm.generate(p, params) for p in prompts))

    together = asyncio.run(all_of_them())
    alone = LLM(loaded_model(SHAPE), kv_memory="8MiB").generate(prompts, params)
    assert [r.outputs[0].token_ids for r in together] == [r.outputs[0].token_ids for r in alone]
    assert llm.stats.computed_prompt_tokens < sum(map(len, prompts)) / 2


def test_stream(llm):
    async def pieces():
        return [c async for c in llm.stream([5, 6], SamplingParams(max_tokens=7))]

    chunks = asyncio.run(pieces())
    assert len(chunks) == 7
    assert chunks[-1].finish_reason == "length"


def test_bad_prompt_reaches_its_caller_alone(llm):
    async def both():
        good = asyncio.create_task(llm.generate([1, 2], SamplingParams(max_tokens=5)))
        with pytest.raises(ForewordError, match="empty"):
            await llm.generate([])
        return await good

    assert len(asyncio.run(both()).outputs[0].token_ids) == 5


def test_a_cancelled_caller_leaves_nothing_behind(llm):
    async def vanish():
        task = asyncio.create_task(llm.generate([1, 2, 3], SamplingParams(max_tokens=400)))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await llm.generate([4], SamplingParams(max_tokens=1))

    asyncio.run(vanish())
    assert llm.stats.generated_tokens < 400
    llm.close()
    assert not llm._llm.engine.has_work
    tree = llm._llm.engine.tree
    assert tree.used_pages == tree.evictable_pages
    tree.check()


def test_closing_ends_what_runs(llm):
    async def close_in_the_middle():
        stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=400))
        await anext(stream)
        await asyncio.to_thread(llm.close)
        with pytest.raises(ForewordError, match="closed"):
            async for _ in stream:
                pass

    asyncio.run(close_in_the_middle())
    engine = llm._llm.engine
    assert not engine.has_work
    assert engine.tree.used_pages == engine.tree.evictable_pages


def test_closed(llm):
    llm.close()
    llm.close()

    with pytest.raises(ForewordError, match="closed"):
        asyncio.run(llm.generate([1]))
