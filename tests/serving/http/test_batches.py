"""Batches beside a service: what they answer, within which limits, and how they end."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from foreword.serving import ResultFile, read_lines, run_batch
from foreword.serving.http import ApiError, Keyring
from foreword.serving.http.batches import _batch_work as work_module
from foreword.serving.http.batches._batch_seats import Seats
from tests.serving.http.batch_tools import (
    LINES,
    URL,
    Slow,
    ended,
    line,
    make,
    records,
    running,
    said,
    service_around,
    text,
    until,
)


@pytest.fixture
def new_service(llm, make_service):
    """`new_service(keys, **settings)`: a service without a data directory of its own."""
    make_service()  # with an empty cache, and idle at the end
    return partial(service_around, llm)


@pytest.fixture
def offline(tmp_path):
    """What `foreword batch` answers to the same lines."""
    from foreword import LLM

    def answers(data):
        path = tmp_path / "offline.jsonl"
        path.write_bytes(data)
        llm = LLM("nano", kv_memory="64MiB")
        with ResultFile(tmp_path / "offline.out", {"input": "x"}) as out:
            run_batch(llm, read_lines(path), out, total=0, model="nano")
        lines = (tmp_path / "offline.out").read_text().splitlines()
        return said({item["line"]: item for item in map(json.loads, lines)})

    return answers


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_a_batch_answers_what_the_command_answers(new_service, tmp_path, offline, kind):
    lines, url = [*LINES, line(8, n=2)], URL
    if kind == "chat":
        url = "/v1/chat/completions"
        messages = [{"role": "user", "content": "How many kings?"}]
        lines = [
            {"custom_id": str(i), "method": "POST", "url": url, "body": {"messages": messages}}
            for i in range(3)
        ]
    data = text(lines) + b"\nnot json\n"

    async def main():
        async with running(new_service(), tmp_path / "data") as jobs:
            batch = await ended(jobs, await make(jobs, data, url=url))
            return batch, records(jobs, batch)

    batch, found = asyncio.run(main())
    expected = offline(data)
    assert found.keys() == expected.keys()
    refused = {number for number, what in expected.items() if isinstance(what, dict)}
    # The API refuses the same lines, in its own words.
    assert {number for number, record in found.items() if record["error"]} == refused
    assert len(refused) == (1 if kind == "chat" else 3)
    got = said(found)
    for number in expected.keys() - refused:
        assert got[number] == expected[number]
    usage = [r["response"]["body"]["usage"] for r in found.values() if r["response"]]
    for name in ("prompt_tokens", "completion_tokens"):
        assert batch.usage[name] == sum(one[name] for one in usage) > 0
    assert (batch.status, batch.completed + batch.failed, batch.total) == (
        "completed",
        len(found),
        len(found),
    )
    moments = [batch.moments[f"{name}_at"] for name in ("in_progress", "finalizing", "completed")]
    assert batch.created_at <= moments[0] <= moments[1] <= moments[2]
    left = (tmp_path / "data" / "batches").iterdir()
    assert [path.name for path in left] == [f"{batch.id}.json"]


def test_cancelled_in_the_middle_it_keeps_what_is_answered(new_service, tmp_path):
    async def main():
        service = new_service()
        slow = Slow(service, free=3)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs)
            await until(lambda: sum(jobs.counts(batch)) == 5)  # and two that cannot be run
            assert jobs.get("", batch.id).status == "in_progress"
            assert jobs.counts(batch) == (3, 2)
            both = await asyncio.gather(jobs.cancel("", batch.id), jobs.cancel("", batch.id))
            assert {one.status for one in both} <= {"cancelling", "cancelled"}
            batch = await ended(jobs, batch)
            assert slow.inside == 0
            assert (await jobs.cancel("", batch.id)) == batch
            return batch, records(jobs, batch)

    batch, found = asyncio.run(main())
    assert (batch.status, batch.completed, batch.failed, batch.total) == ("cancelled", 3, 2, 9)
    assert len(found) == 5
    assert {"cancelling_at", "cancelled_at"} <= batch.moments.keys()


def test_cancelled_before_it_ran_it_has_no_files(new_service, tmp_path):
    async def main():
        service = new_service()
        Slow(service)
        async with running(service, tmp_path) as jobs:
            first = [await make(jobs) for _ in range(2)]
            waits = await make(jobs)
            await ended(jobs, await make(jobs, b"\n", "other"), "other")  # it has no wait
            assert [jobs.get("", b.id).status for b in first] == ["in_progress"] * 2
            assert jobs.get("", waits.id).status == "validating"
            await jobs.cancel("", waits.id)
            waits = await ended(jobs, waits)
            for batch in first:
                await jobs.cancel("", batch.id)
                await ended(jobs, batch)
            return waits

    batch = asyncio.run(main())
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("cancelled", None, None)


def test_what_has_ended_is_not_cancelled(new_service, tmp_path):
    async def main():
        async with running(new_service(), tmp_path) as jobs:
            batch = await ended(jobs, await make(jobs))
            with pytest.raises(ApiError, match="completed"):
                await jobs.cancel("", batch.id)
            with pytest.raises(ApiError, match="no batch"):
                await jobs.cancel("else", batch.id)

    asyncio.run(main())


def test_a_full_server_makes_lines_wait_and_fail_only_for_good(new_service, tmp_path):
    busy = ApiError(503, "busy", code="queue_full", headers={"Retry-After": "0.01"})
    quota = ApiError(429, "later", code="requests_per_minute", headers={"Retry-After": "0.01"})
    never = ApiError(429, "never", code="too_much", headers={"x-should-retry": "false"})
    late = ApiError(504, "late", code="timeout")

    async def main():
        service = new_service()
        real, refused = service.answer, {}

        async def answer(caller, job):
            key = tuple(job.prompts[0])
            plan = plans.get(len(key), [])
            turn = refused[key] = refused.get(key, 0) + 1
            if turn <= len(plan):
                raise plan[turn - 1]
            async for item in real(caller, job):
                yield item

        service.answer = answer
        plans = {1: [busy, quota, busy], 2: [never], 3: [late], 4: [RuntimeError("engine")] * 9}
        lines = [line(i, prompt=[7] * i) for i in range(1, 6)]
        async with running(service, tmp_path) as jobs:
            batch = await ended(jobs, await make(jobs, text(lines)))
            return {n: r["error"] and r["error"]["code"] for n, r in records(jobs, batch).items()}

    assert asyncio.run(main()) == {1: None, 2: "too_much", 3: None, 4: "engine_error", 5: None}


def test_who_is_sent_away_leaves_the_seats_to_others(new_service, tmp_path):
    later = ApiError(429, "later", code="requests_per_minute", headers={"Retry-After": "60"})

    keys = Keyring.of([{"key": name * 20, "tenant": name} for name in ("ann", "bob")])

    async def main():
        service = new_service(keys)
        real, refused = service.answer, []

        async def answer(caller, job):
            if job.prompts[0][0] == 1:
                refused.append(job)
                raise later
            async for item in real(caller, job):
                yield item

        service.answer = answer
        async with running(service, tmp_path) as jobs:
            waits = await make(jobs, text([line(i, prompt=[1, i]) for i in range(1, 101)]), "ann")
            await until(lambda: refused)
            done = await ended(jobs, await make(jobs, tenant="bob"), "bob")
            assert (done.status, done.completed) == ("completed", 7)
            assert jobs.get("ann", waits.id).status == "in_progress"
            return len(refused)

    assert asyncio.run(main()) <= 32


def test_lines_take_seats_and_no_places_in_line(new_service, tmp_path):
    async def main():
        service = new_service()
        slow = Slow(service)
        async with running(service, tmp_path) as jobs:
            data = text([line(i, n=4, max_tokens=1) for i in range(20)])
            batch = await make(jobs, data)
            await until(lambda: slow.inside == 32)
            assert service.llm.max_batch == 32
            # Others fill the server: as lines end no new ones come, but for one at a time.
            places = [service.gate.enter(work_module.Caller("other"), answers=32, prompt_tokens=1)]
            slow.let(8)
            await until(lambda: jobs.counts(batch) == (8, 0) and slow.inside == 4)
            slow.let(1)
            await until(lambda: jobs.counts(batch) == (9, 0) and slow.inside == 4)
            for place in places:
                place.close()
            slow.let(100)
            batch = await ended(jobs, batch)
            return batch, slow.most

    batch, most = asyncio.run(main())
    assert (batch.completed, most) == (20, 32)


def test_a_tenant_is_charged_within_its_limits_and_keeps_half_for_itself(new_service, tmp_path):
    limits = {"concurrent": 8, "max_tokens": 6}
    keys = Keyring.of([{"key": "k" * 20, "tenant": "ann", "operator": True, "limits": limits}])
    data = text([*(line(i) for i in range(8)), line(8, max_tokens=7), line(9, max_tokens=None)])

    async def main():
        service = new_service(keys)
        slow = Slow(service)
        async with running(service, tmp_path) as jobs:
            both = [await make(jobs, data, "ann") for _ in range(2)]
            await until(lambda: slow.inside == 4)
            slow.let(100)
            both = [await ended(jobs, batch, "ann") for batch in both]
            assert slow.most == 4
            return both[0], records(jobs, both[0], "ann"), {caller for caller, _ in slow.calls}

    batch, found, callers = asyncio.run(main())
    assert (batch.completed, batch.failed) == (9, 1)
    assert "limit of your key is 6" in found[9]["error"]["message"]
    assert len(found[10]["response"]["body"]["choices"]) == 1
    assert found[10]["response"]["body"]["usage"]["completion_tokens"] <= 6
    (one,) = callers
    assert (one.tenant, one.operator, one.limits.concurrent) == ("ann", False, 8)


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"\n \n", "empty_file"), (b"{}\n" * 4, "too_many_requests")],
)
def test_a_file_that_is_no_batch_fails_it(new_service, tmp_path, monkeypatch, data, code):
    monkeypatch.setattr("foreword.serving.http.batches._batch_runner.MAX_REQUESTS", 3)

    async def main():
        async with running(new_service(), tmp_path) as jobs:
            batch = await ended(jobs, await make(jobs, data))
            return batch, jobs.errors(batch)

    batch, errors = asyncio.run(main())
    assert (batch.status, errors[0]["code"], batch.output_file_id) == ("failed", code, None)
    assert "failed_at" in batch.moments


def test_lines_of_the_server_s_own_limits(new_service, tmp_path):
    other = {
        "custom_id": "x",
        "url": "/v1/chat/completions",
        "body": {"messages": [{"role": "user", "content": "a"}]},
    }
    lines = [
        line(1, n=17), line(2, model="gpt"), line(3, model=7), line(4, model="nano"), other,
        line(6, cache_salt="a"), line(7, cache_salt=7), line(8, stream=True),
        line(9, prompt="a" * 100_000), {"prompt": "bare", "max_tokens": 2, "user": "eve"},
    ]  # fmt: skip

    async def main():
        service = new_service()
        slow = Slow(service, free=100)
        async with running(service, tmp_path) as jobs:
            batch = await ended(jobs, await make(jobs, text(lines)))
            found = records(jobs, batch)
            codes = [found[n]["error"] and found[n]["error"]["code"] for n in sorted(found)]
            return codes, {(job.cache_salt, job.user) for _, job in slow.calls}

    codes, salts = asyncio.run(main())
    assert codes == [
        "invalid_parameter", "model_not_found", "invalid_parameter", None, "mismatched_endpoint",
        None, "invalid_parameter", "invalid_parameter", "context_length_exceeded", None,
    ]  # fmt: skip
    assert salts == {("", ""), ("a", ""), ("", "eve")}


def test_a_line_is_no_longer_than_a_request_may_be(new_service, tmp_path):
    data = text([line(1), line(2, prompt="a" * 3000), line(3)])

    async def main():
        async with running(new_service(max_body=1000), tmp_path) as jobs:
            return records(jobs, await ended(jobs, await make(jobs, data)))

    found = asyncio.run(main())
    assert {n: r["error"] and r["error"]["code"] for n, r in found.items()} == {
        1: None, 2: "line_too_long", 3: None
    }  # fmt: skip


def test_one_tenant_s_batches_are_bounded(new_service, tmp_path, monkeypatch):
    monkeypatch.setattr("foreword.serving.http.batches._batch_jobs.MAX_OPEN", 2)
    monkeypatch.setattr("foreword.serving.http.batches._batch_jobs._KEPT", 3)

    async def main():
        service = new_service()
        slow = Slow(service)
        async with running(service, tmp_path) as jobs:
            batches = [await make(jobs), await make(jobs)]
            with pytest.raises(ApiError) as many:
                await make(jobs)
            assert (many.value.status, many.value.code) == (429, "too_many_batches")
            other = await make(jobs, b"\n", "other")
            slow.let(100)
            for batch in batches:
                await ended(jobs, batch)
            for _ in range(4):
                batches.append(await make(jobs, b"\n"))
                await ended(jobs, batches[-1])
            await ended(jobs, other, "other")
            kept = jobs.of("")
        async with running(service, tmp_path) as jobs:
            assert jobs.of("") == kept
            return len(kept)

    assert asyncio.run(main()) == 4


def test_an_input_stays_while_it_is_read(new_service, tmp_path):
    async def main():
        service = new_service()
        slow = Slow(service)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs)
            with pytest.raises(ApiError) as used:
                await jobs.delete_file("", batch.input_file_id)
            assert (used.value.status, used.value.code) == (400, "file_in_use")
            slow.let(100)
            batch = await ended(jobs, batch)
            await jobs.delete_file("", batch.input_file_id)
            with pytest.raises(ApiError, match="no file"):
                await jobs.create(
                    "", endpoint=URL, input_file_id=batch.input_file_id, metadata=None
                )
            with pytest.raises(ApiError, match="no input"):
                await jobs.create(
                    "", endpoint=URL, input_file_id=batch.output_file_id, metadata=None
                )

    asyncio.run(main())


def test_lines_that_begin_alike_follow_each_other(new_service, tmp_path):
    """Read in any order, those that share a prefix reach the engine together."""
    prompts = [[i % 4, 9, i] for i in range(32)]

    async def main():
        service = new_service()
        slow = Slow(service, free=100)
        async with running(service, tmp_path) as jobs:
            await ended(
                jobs, await make(jobs, text([line(i, prompt=p) for i, p in enumerate(prompts)]))
            )
            return [job.prompts[0][0] for _, job in slow.calls]

    assert asyncio.run(main()) == sorted(prompt[0] for prompt in prompts)


def test_seats_are_given_in_turn_and_come_back(tmp_path):
    async def main():
        seats = Seats(4)
        await seats.take(3)
        order = []

        async def take(name, count):
            await seats.take(count)
            order.append(name)

        tasks = [asyncio.ensure_future(take(*one)) for one in (("a", 2), ("b", 1), ("c", 99))]
        await asyncio.sleep(0)
        assert order == []  # b would fit, but a was first
        tasks[0].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert order == ["b"]
        seats.give(3)
        seats.give(1)
        tasks[2].cancel()  # in the same moment in which its seats come
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.wait_for(seats.take(4), 5)

    asyncio.run(main())
