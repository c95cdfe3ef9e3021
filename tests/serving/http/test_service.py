"""The one way to the engine: whatever happens to a job, nothing of it is left behind."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from starlette.testclient import TestClient

from foreword._errors import ForewordError, PromptError
from foreword.engine import AsyncLLM, Chunk, Result, SamplingParams
from foreword.serving.http import (
    ApiError,
    Caller,
    Job,
    Keyring,
    Limits,
    ServerConfig,
    Service,
    create_app,
)
from foreword.serving.http._service import seconds_asked
from tests.serving.http.services import (
    ALICE,
    CHUNK,
    PROMPT,
    assert_nothing_left,
    ends,
    fresh,
    job,
    results,
    stood_in,
    whole,
)

# -- the plain way ---------------------------------------------------------------------------------


def test_a_job_is_answered_and_leaves_nothing(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        items = await whole(service, job(PROMPT, PROMPT[:9], n=2))
        first, second = results(items)
        assert (first.prompt_tokens, second.prompt_tokens) == (30, 9)
        for result in (first, second):
            for output in result.outputs:
                chunks = [
                    item
                    for item in items
                    if isinstance(item, Chunk)
                    and (item.index, item.output_index) == (result.index, output.index)
                ]
                assert "".join(chunk.text for chunk in chunks) == output.text
        await assert_nothing_left(service)
        assert ends(service) == {"length": 4}

    asyncio.run(main())


def test_places_are_given_back_as_answers_start_and_end(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        seen = set()
        async with aclosing(service.answer(ALICE, job(PROMPT, PROMPT[:9], n=2))) as events:
            async for item in events:
                load = service.gate.load().get("alice", (0, 0))
                seen.add(tuple(load))
                if isinstance(item, Result):
                    assert sum(load) <= 2
        assert seen >= {(0, 4), (0, 2), (0, 0)}
        assert max(sum(load) for load in seen) == 4

    asyncio.run(main())


def test_a_prompt_that_is_only_scored_leaves_nothing_either(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        params = SamplingParams(max_tokens=0, prompt_logprobs=1)
        (result,) = results(await whole(service, Job((PROMPT,), (params,))))
        assert result.prompt_logprobs is not None
        assert len(result.prompt_logprobs) == len(PROMPT)
        await assert_nothing_left(service)
        assert ends(service) == {"length": 1}

    asyncio.run(main())


def test_the_wait_in_line_ends_with_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service, _ = stood_in(monkeypatch, CHUNK, None)
        events = service.answer(ALICE, job(PROMPT, PROMPT[:7]))
        await anext(events)
        assert service.gate.load() == {"alice": (1, 1)}
        assert service.gate.waiting_tokens == 7
        await events.aclose()
        assert service.gate.load() == {}

    asyncio.run(main())


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_a_server_that_is_not_ready_takes_nothing(
    monkeypatch: pytest.MonkeyPatch, state: Any
) -> None:
    async def main() -> None:
        service, llm = stood_in(monkeypatch)
        service.state = state
        with pytest.raises(ApiError, match=state) as caught:
            await whole(service, job())
        assert caught.value.status == 503
        assert caught.value.headers["Retry-After"]
        assert not llm.asked

    asyncio.run(main())


# -- endings ---------------------------------------------------------------------------------------


def test_a_refused_prompt_is_nobodys_abort(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        with pytest.raises(PromptError, match="prompt 1"):
            await whole(service, job(PROMPT, [10**6]))
        await assert_nothing_left(service)
        assert ends(service) == {}

    asyncio.run(main())


def test_an_engine_that_breaks_is_counted_as_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service, llm = stood_in(monkeypatch, CHUNK, ForewordError("the engine was closed"))
        with pytest.raises(ForewordError, match="closed"):
            await whole(service, job(n=3))
        assert ends(service) == {"error": 3}
        assert (service.gate.answers, llm.closed) == (0, 1)

    asyncio.run(main())


def test_an_engine_that_says_too_little_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service, _ = stood_in(monkeypatch, CHUNK)
        with pytest.raises(ForewordError, match="before the answer was complete"):
            await whole(service, job())
        assert ends(service) == {"error": 1}

    asyncio.run(main())


def test_a_generator_that_was_never_begun_took_no_place(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        events = service.answer(ALICE, job())
        assert service.gate.answers == 0
        await events.aclose()
        await assert_nothing_left(service)
        assert ends(service) == {}

    asyncio.run(main())


def test_closing_in_the_middle_ends_the_job_within_a_step(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        events = service.answer(ALICE, job(n=4, max_tokens=300))
        await anext(events)
        assert service.gate.answers == 4
        await events.aclose()
        assert service.gate.answers == 0
        await assert_nothing_left(service)  # asked right after the step that was running
        assert ends(service) == {"abort": 4}

    asyncio.run(main())


def test_a_consumer_that_takes_the_result_and_leaves_aborts_nothing(
    llm: AsyncLLM,
) -> None:
    async def main() -> None:
        service = await fresh(llm)
        async with aclosing(service.answer(ALICE, job())) as events:
            async for item in events:
                if isinstance(item, Result):
                    break
        await assert_nothing_left(service)
        assert ends(service) == {"length": 1}

    asyncio.run(main())


def test_time_that_is_over_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        service, llm = stood_in(monkeypatch, CHUNK, None, request_seconds=0.02)
        events = service.answer(ALICE, job())
        await anext(events)
        with pytest.raises(ApiError, match=r"within 0\.02 seconds") as caught:
            await anext(events)
        assert (caught.value.status, caught.value.code) == (504, "timeout")
        assert (service.gate.answers, llm.closed) == (0, 1)
        assert ends(service) == {"abort": 1}

    asyncio.run(main())


def test_a_caller_can_shorten_the_time_and_not_lengthen_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        for mine, server, said in ((0.01, 60, "0.01"), (60, 0.01, "0.01")):
            service, _ = stood_in(monkeypatch, None, request_seconds=server)
            with pytest.raises(ApiError, match=f"within {said} seconds"):
                await whole(service, job(seconds=mine))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("header", "seconds"), [(None, None), ("30", 30), ("2.5", 2.5), ("0.001", 0.001)]
)
def test_a_timeout_in_a_header(header: str | None, seconds: float | None) -> None:
    assert seconds_asked(header) == seconds


@pytest.mark.parametrize(
    "header", ["", "0", "0.0", "-1", "1e3", "nan", "inf", "1_0", " 5", "5s", "9" * 400, "٣"]
)
def test_a_timeout_that_is_no_number_of_seconds_is_refused(header: str) -> None:
    with pytest.raises(ApiError, match="x-request-timeout") as caught:
        seconds_asked(header)
    assert caught.value.status == 400


def test_a_cancellation_that_comes_together_with_an_event_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`asyncio.wait_for` before Python 3.12 swallows it: the job would go on for nobody."""

    async def main() -> None:
        service, llm = stood_in(monkeypatch)
        inbox: asyncio.Queue[Chunk] = asyncio.Queue()

        async def events(*args: Any, **settings: Any) -> AsyncGenerator[Chunk, None]:
            try:
                while True:
                    yield await inbox.get()
            finally:
                llm.closed += 1

        llm.events = events
        task = asyncio.create_task(whole(service, job()))
        while not service.gate.answers:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        inbox.put_nowait(CHUNK)  # both before the task runs again
        task.cancel()
        ended, _ = await asyncio.wait({task}, timeout=5)
        task.cancel()
        assert ended
        assert task.cancelled()
        assert (service.gate.answers, llm.closed) == (0, 1)
        assert ends(service) == {"abort": 1}

    asyncio.run(main())


def test_two_hundred_tasks_cancelled_anywhere_leave_nothing(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm, config=ServerConfig(max_waiting=10**6))
        random_ = random.Random(5)
        ended: Counter[str] = Counter()

        async def one(i: int) -> None:
            prompt = [*PROMPT[: random_.randrange(1, 30)], i % 200, i // 200]
            n = random_.choice([1, 1, 2, 5])
            seconds = 0.03 if i % 10 == 0 else None
            work = job(prompt, PROMPT, n=n, max_tokens=random_.choice([1, 5, 40]), seconds=seconds)
            limit = random_.randrange(1, 12) if i % 7 == 0 else 10**9
            try:
                seen = 0
                async with aclosing(service.answer(Caller(f"t{i % 3}"), work)) as events:
                    async for _ in events:
                        seen += 1
                        if seen >= limit:
                            ended["closed"] += 1
                            return
                ended["whole"] += 1
            except ApiError as error:
                ended["late" if error.status == 504 else "refused"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1
                raise

        tasks = [asyncio.create_task(one(i)) for i in range(200)]
        for task in random_.sample(tasks, 150):
            task.cancel()
            for _ in range(random_.choice([0, 0, 1, 2, 5, 20])):
                await asyncio.sleep(0)
            if random_.random() < 0.2:  # let the engine take a step or two
                await service.llm.run(lambda engine: None)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not [t for t in tasks if not t.cancelled() and t.exception()]
        assert "refused" not in ended
        assert ended["cancelled"]
        assert ended["whole"]
        await assert_nothing_left(service)
        assert ended["whole"] * 2 <= sum(ends(service).values())

    asyncio.run(main())


# -- limits ----------------------------------------------------------------------------------------


def test_what_is_written_counts_against_the_minute(llm: AsyncLLM) -> None:
    async def main() -> None:
        service = await fresh(llm)
        caller = Caller("alice", limits=Limits(tokens_per_minute=50))
        await whole(service, job(n=2, max_tokens=8), caller)  # 30 and 2 * 8
        with pytest.raises(ApiError, match="used 46 tokens within a minute") as caught:
            await whole(service, job(), caller)
        assert caught.value.status == 429
        await whole(service, job([1, 2, 3]), caller)

    asyncio.run(main())


def test_over_http_a_limit_says_when_to_come_back(llm: AsyncLLM) -> None:
    key = "alice-0123456789abcdef"
    limits = {"requests_per_minute": 1}
    keys = Keyring.of([{"key": key, "tenant": "alice", "limits": limits}])
    service = Service.of(llm, keys=keys)
    with TestClient(create_app(service), base_url="http://localhost") as client:
        client.headers["Authorization"] = f"Bearer {key}"
        body = {"model": "nano", "prompt": PROMPT, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 200
        for sent in (body, {**body, "stream": True}, {"no": "sense"}):  # it is not even read
            answer = client.post("/v1/completions", json=sent)
            assert answer.status_code == 429
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert answer.json()["error"]["code"] == "requests_per_minute"
            seconds = int(answer.headers["Retry-After"])
            assert 0 < int(answer.headers["retry-after-ms"]) <= 1000 * seconds <= 61_000
        assert client.get("/v1/models").status_code == 200
    labels = {"tenant": "alice", "status": "429", "reason": "requests_per_minute"}
    refused = next(iter(service.metrics._refused.collect())).samples
    assert [s.value for s in refused if s.labels == labels and s.name.endswith("_total")] == [3]


def test_a_keyring_of_several_tenants_shares_the_line(llm: AsyncLLM) -> None:
    def keys(*tenants: str) -> Keyring:
        return Keyring.of([{"key": f"{t}-0123456789abcdef", "tenant": t} for t in tenants])

    config = ServerConfig(max_waiting=18)
    for keyring, most in ((None, 18), (keys("a"), 18), (keys("a", "b"), 16)):
        service = Service.of(llm, config=config, keys=keyring)
        seats = service.llm.max_batch
        with pytest.raises(ApiError) as caught:
            service.gate.enter(ALICE, answers=seats + most + 1, prompt_tokens=1)
        assert caught.value.status == 400
        service.gate.enter(ALICE, answers=seats + most, prompt_tokens=1)


def test_a_user_of_a_server_without_keys_is_charged_and_shares_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        for caller, tenant in ((Caller(), "ann"), (ALICE, "alice")):
            service, llm = stood_in(monkeypatch, ForewordError("enough"))
            with pytest.raises(ForewordError):
                await whole(service, job(user="ann"), caller)
            salt = service.isolation.salt(caller.tenant)
            assert llm.asked == [{"tenant": tenant, "salt": salt, "prefix": None}]

    asyncio.run(main())
