"""Many callers, one engine."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from foreword import ForewordError
from foreword.engine import LLM, AsyncLLM, Chunk, Result, SamplingParams

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


def test_several_prompts_of_one_call(llm):
    """Chunks and results name their prompt, and every chunk comes before its result."""
    prompts = [[1, 2, 3], [1, 2, 4], [5]]
    params = [SamplingParams(max_tokens=m, n=n, logprobs=2) for m, n in ((3, 1), (4, 2), (2, 3))]

    async def all_items():
        return [item async for item in llm.events(prompts, params)]

    items = asyncio.run(all_items())
    results = {item.index: item for item in items if isinstance(item, Result)}
    assert sorted(results) == [0, 1, 2]
    for index, result in results.items():
        place = items.index(result)
        chunks = [c for c in items if isinstance(c, Chunk) and c.index == index]
        assert all(items.index(c) < place for c in chunks)
        assert len(result.outputs) == params[index].n
        for output in result.outputs:
            mine = [c for c in chunks if c.output_index == output.index]
            assert "".join(c.text for c in mine) == output.text
            assert sum((c.token_ids for c in mine), ()) == output.token_ids
            assert sum((c.logprobs for c in mine), ()) == output.logprobs
            assert [c.finish_reason for c in mine if c.finish_reason] == [output.finish_reason]


def test_a_bad_prompt_among_several_stops_all(llm):
    async def some():
        with pytest.raises(ForewordError, match="prompt 1 is empty"):
            async for _ in llm.events([[1, 2], []], SamplingParams(max_tokens=5)):
                pass
        return await llm.run(lambda engine: engine.has_work)

    assert asyncio.run(some()) is False


def test_no_prompt_is_no_answer(llm):
    async def none():
        return [item async for item in llm.events([])]

    assert asyncio.run(none()) == []


def test_tasks_run_between_steps(llm):
    async def ask():
        stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=60))
        await anext(stream)
        running = await llm.run(lambda engine: engine.running)
        with pytest.raises(ZeroDivisionError):
            await llm.run(lambda engine: 1 // 0)
        rest = [chunk async for chunk in stream]
        return running, rest[-1].finish_reason

    assert asyncio.run(ask()) == (1, "length")


def test_what_was_found_in_the_cache_is_counted_at_admission(llm):
    async def twice():
        first = await llm.generate([1, 2, 3, 4], SamplingParams(max_tokens=2))
        second = await llm.generate([1, 2, 3, 4, 5], SamplingParams(max_tokens=2, n=3))
        counters = await llm.run(lambda engine: engine.counters)
        return first, second, counters.looked_up_tokens, counters.found_tokens

    first, second, looked_up, found = asyncio.run(twice())
    assert (first.cached_tokens, second.cached_tokens) == (0, 4)
    assert (looked_up, found) == (9, 4)
    for result in (first, second):
        assert 0 <= result.timing.admitted < result.timing.first_token < result.timing.ended


def test_calls_while_it_closes_are_answered_one_way_or_the_other(llm):
    """Nobody is left to wait for a thread that has ended."""

    async def race():
        async def ask():
            with contextlib.suppress(ForewordError):
                await llm.run(lambda engine: engine.has_work)
            with contextlib.suppress(ForewordError):
                await llm.generate([1, 2], SamplingParams(max_tokens=2))

        async def many():
            for _ in range(200):
                await ask()

        await asyncio.wait_for(asyncio.gather(many(), asyncio.to_thread(llm.close)), 30)

    asyncio.run(race())
