"""Batches beside a service: killed anywhere, on full disks, cancelled, late, in a full server."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from foreword.serving import ResultFile, read_lines, run_batch
from foreword.serving import _result_file as result_file_module
from foreword.serving.http import ApiError, Keyring, ServerConfig, Service
from foreword.serving.http import _batch_work as work_module
from foreword.serving.http import _disk as disk_module
from foreword.serving.http._batch_jobs import BatchJobs
from foreword.serving.http._batch_work import Seats

URL = "/v1/completions"


def line(i, **body):
    body = {
        "prompt": f"Once upon a time there were {i % 3} kings, and {i}",
        "max_tokens": 4,
        **body,
    }
    return {"custom_id": f"c{i}", "method": "POST", "url": URL, "body": body}


LINES = [*(line(i) for i in range(6)), line(6, prompt=""), line(7, temperature=0), line(0)]
"""Six that draw without a seed of their own, one that is refused, one greedy, a custom_id again."""


def text(lines=LINES):
    return "\n".join(json.dumps(item) for item in lines).encode() + b"\n"


def put(jobs, data=None, tenant=""):
    with jobs.store.draft(tenant) as draft:
        draft.write(text() if data is None else data)
        return draft.commit("in.jsonl").id


async def make(jobs, data=None, tenant="", url=URL):
    file = put(jobs, data, tenant)
    return await jobs.create(tenant, endpoint=url, input_file_id=file, metadata=None)


@pytest.fixture
def new_service(llm, make_service):
    """`new_service(keys, **settings)`: a service without a data directory of its own."""
    make_service()  # with an empty cache, and idle at the end

    def make(keys=None, **settings):
        return Service.of(llm, config=ServerConfig(**settings), keys=keys)

    return make


@asynccontextmanager
async def running(service, root, **settings):
    jobs = BatchJobs(service, root, **{"retry_seconds": 0.01, **settings})
    jobs.start()
    try:
        yield jobs
    finally:
        await jobs.stop()


async def until(condition, seconds=30):
    """Wait for something that files and threads bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.002)


async def ended(jobs, batch, tenant=""):
    await until(lambda: jobs.get(tenant, batch.id).ended)
    return jobs.get(tenant, batch.id)


def records(jobs, batch, tenant=""):
    """The batch's two files, by line; a line may stand in one of them only, and once."""
    found = {}
    for file_id, good in ((batch.output_file_id, True), (batch.error_file_id, False)):
        if file_id is None:
            continue
        for raw in jobs.store.path(jobs.store.get(tenant, file_id)).read_bytes().splitlines():
            record = json.loads(raw)
            assert (record["error"] is None) == good
            assert record["line"] not in found, "a line is there twice"
            found[record["line"]] = record
    return found


def said(found):
    """What must not depend on when or how often a batch was interrupted."""
    return {
        number: record["error"]
        or [
            choice["text"] if "text" in choice else choice["message"]["content"]
            for choice in record["response"]["body"]["choices"]
        ]
        for number, record in found.items()
    }


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


def test_killed_at_any_moment_no_line_is_lost_or_doubled(new_service, tmp_path, monkeypatch):
    """After every write and every rename the directory is copied, as a kill would leave it, and
    each copy is taken up by another start."""
    root, copies = tmp_path / "data", []

    def copying(function):
        def call(*args, **kwargs):
            result = function(*args, **kwargs)
            if copies_on:
                copies.append(shutil.copytree(root, tmp_path / f"copy{len(copies)}"))
            return result

        return call

    copies_on: list[bool] = []

    async def whole(jobs, batch):
        batch = await ended(jobs, batch)
        return said(records(jobs, batch)), replace(batch, moments={})

    async def first():
        async with running(new_service(), root) as jobs:
            file = put(jobs)
            copies_on.append(True)
            batch = await jobs.create("", endpoint=URL, input_file_id=file, metadata={"a": "b"})
            result = await whole(jobs, batch)
            copies_on.clear()
            return batch, *result

    with monkeypatch.context() as patch:
        for module in (disk_module.os, result_file_module.os):
            patch.setattr(module, "write", copying(os.write))
            patch.setattr(module, "replace", copying(os.replace))
            break  # both modules hold the same one
        batch, expected, final = asyncio.run(first())

    async def again(copy):
        async with running(new_service(), copy) as jobs:
            if not jobs.of(""):  # killed before the caller heard of it
                return None
            return await whole(jobs, batch)

    states = set()
    for copy in copies:
        for path in copy.glob("batches/batch_*.json"):
            if "meta" not in path.name:
                states.add(json.loads(path.read_text())["status"])
        done = asyncio.run(again(copy))
        if done is None:
            continue
        assert done[0] == expected
        assert (done[1].status, done[1].completed, done[1].failed) == ("completed", 7, 2)
        usage = dict(done[1].usage), dict(final.usage)
        for one in usage:
            one.pop("cached_tokens")  # an interrupted run finds more in its cache, or less
        assert usage[0] == usage[1]
        names = {path.name for path in (copy / "files").iterdir()}
        assert len(names) == 6, "input, answers and errors, a sidecar each, and nothing else"
    assert states == {"validating", "in_progress", "finalizing", "completed"}
    assert len(copies) > 20


class Slow:
    """Stands between a service and its engine: lets answers begin when it is told to."""

    def __init__(self, service, free=0):
        self.calls, self.inside, self.most = [], 0, 0
        self._real, self._free = service.answer, asyncio.Semaphore(free)
        service.answer = self._answer

    def let(self, count):
        for _ in range(count):
            self._free.release()

    async def _answer(self, caller, job):
        self.calls.append((caller, job))
        self.inside += job.answers
        self.most = max(self.most, self.inside)
        try:
            await self._free.acquire()
            async for item in self._real(caller, job):
                yield item
        finally:
            self.inside -= job.answers


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


def test_a_server_that_goes_down_lets_lines_end_and_the_next_goes_on(new_service, tmp_path):
    async def main():
        service = new_service()
        slow = Slow(service, free=2)
        jobs = BatchJobs(service, tmp_path)
        jobs.start()
        batch = await make(jobs)
        await until(lambda: sum(jobs.counts(batch)) == 4)
        running_lines = slow.inside
        stopping = asyncio.ensure_future(jobs.stop())
        await asyncio.sleep(0)
        slow.let(running_lines)
        await stopping
        calls = len(slow.calls)
        with pytest.raises(ApiError, match="draining"):
            await make(jobs)
        service = new_service()
        again = Slow(service, free=100)
        async with running(service, tmp_path) as jobs:
            before = jobs.get("", batch.id)
            batch = await ended(jobs, batch)
            return before, batch, records(jobs, batch), calls + len(again.calls)

    before, batch, found, calls = asyncio.run(main())
    assert before.status == "in_progress"
    assert (batch.status, len(found)) == ("completed", 9)
    assert calls == 7, "a line that was recorded is not run again"


def test_a_draining_service_halts_a_batch_without_an_error(new_service, tmp_path):
    async def main():
        service = new_service()
        slow = Slow(service, free=2)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs)
            await until(lambda: sum(jobs.counts(batch)) == 4)
            service.state = "draining"
            slow.let(100)
            await until(lambda: not slow.inside)
            assert jobs.counts(batch) == (2, 2)
            service.state = "ready"
            batch = await ended(jobs, batch)
            return batch

    batch = asyncio.run(main())
    assert (batch.completed, batch.failed) == (7, 2)


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


def test_a_full_disk_makes_a_batch_wait_and_say_so(new_service, tmp_path, monkeypatch):
    real = os.write
    full: list[bool] = []

    def write(file, data):
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    async def main():
        service = new_service()
        slow = Slow(service, free=2)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs)
            await until(lambda: sum(jobs.counts(batch)) == 4)
            full.append(True)
            slow.let(100)
            await until(lambda: jobs.errors(batch))
            seen = jobs.get("", batch.id).status, jobs.errors(batch)[0], jobs.counts(batch)
            for refused in (jobs.cancel("", batch.id), make_again(jobs, batch)):
                with pytest.raises(ApiError) as error:
                    await refused
                assert (error.value.status, error.value.code) == (507, "disk_full")
            full.clear()
            batch = await ended(jobs, batch)
            return seen, batch, jobs.errors(batch), records(jobs, batch)

    def make_again(jobs, batch):
        file = batch.input_file_id
        return jobs.create("", endpoint=URL, input_file_id=file, metadata=None)

    monkeypatch.setattr(os, "write", write)
    (status, error, counts), batch, errors, found = asyncio.run(main())
    assert (status, error["code"], counts) == ("in_progress", "disk_full", (2, 2))
    assert str(tmp_path) not in error["message"]
    assert (batch.status, errors, len(found)) == ("completed", [], 9)


def test_a_disk_that_fills_up_at_the_end_does_not_cost_the_answers(
    new_service, tmp_path, monkeypatch
):
    real, fail = os.replace, [True]

    def replace_file(source, target):
        if fail and "draft-file-" in str(source) and len(str(target).split("file-")[-1]) == 32:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target)

    async def main():
        async with running(new_service(), tmp_path) as jobs:
            file = put(jobs)
            monkeypatch.setattr(os, "replace", replace_file)
            batch = await jobs.create("", endpoint=URL, input_file_id=file, metadata=None)
            await until(lambda: jobs.errors(batch))
            seen = jobs.get("", batch.id).status, jobs.errors(batch)[0]["code"]
            assert jobs.counts(jobs.get("", batch.id)) == (7, 2)
            fail.clear()
            batch = await ended(jobs, batch)
            return seen, records(jobs, batch)

    seen, found = asyncio.run(main())
    assert seen == ("finalizing", "disk_full")
    assert len(found) == 9


def test_what_is_not_answered_in_time_expires(new_service, tmp_path):
    now = [1000.0]

    async def main():
        service = new_service(drain_seconds=0)
        slow = Slow(service, free=3)
        async with running(service, tmp_path, clock=lambda: now[0]) as jobs:
            batch = await make(jobs)
            await until(lambda: sum(jobs.counts(batch)) == 5)
        now[0] += 24 * 3600
        async with running(service, tmp_path, clock=lambda: now[0]) as jobs:
            batch = await ended(jobs, batch)
            assert slow.inside == 0
            return batch, records(jobs, batch)

    batch, found = asyncio.run(main())
    assert (batch.status, batch.completed, batch.failed) == ("expired", 3, 6)
    assert batch.moments["expired_at"] >= batch.expires_at == 1000 + 24 * 3600
    codes = [record["error"]["code"] for record in found.values() if record["error"]]
    assert sorted(codes) == [*["batch_expired"] * 4, "duplicate_custom_id", "invalid_prompt"]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"\n \n", "empty_file"), (b"{}\n" * 4, "too_many_requests")],
)
def test_a_file_that_is_no_batch_fails_it(new_service, tmp_path, monkeypatch, data, code):
    monkeypatch.setattr("foreword.serving.http._batch_runner.MAX_REQUESTS", 3)

    async def main():
        async with running(new_service(), tmp_path) as jobs:
            batch = await ended(jobs, await make(jobs, data))
            return batch, jobs.errors(batch)

    batch, errors = asyncio.run(main())
    assert (batch.status, errors[0]["code"], batch.output_file_id) == ("failed", code, None)
    assert "failed_at" in batch.moments


def test_damaged_results_fail_a_batch_and_are_left_to_look_at(new_service, tmp_path):
    async def main():
        service = new_service(drain_seconds=0)
        Slow(service, free=3)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs)
            await until(lambda: sum(jobs.counts(batch)) == 5)
        path = tmp_path / "batches" / f"{batch.id}.jsonl"
        damaged = b"{}\n" + path.read_bytes()
        path.write_bytes(damaged)
        async with running(service, tmp_path) as jobs:
            batch = await ended(jobs, batch)
            assert path.read_bytes() == damaged
            return batch, jobs.errors(batch)

    batch, errors = asyncio.run(main())
    assert (batch.status, errors[0]["code"]) == ("failed", "results_damaged")


def test_another_model_or_a_withdrawn_key_makes_a_batch_wait(new_service, tmp_path):
    ann = Keyring.of([{"key": "k" * 20, "tenant": "ann"}])
    bob = Keyring.of([{"key": "k" * 20, "tenant": "bob"}])

    async def main():
        codes = []
        service = new_service(ann, drain_seconds=0)
        Slow(service)
        async with running(service, tmp_path) as jobs:
            batch = await make(jobs, tenant="ann")
            await until(lambda: jobs.get("ann", batch.id).status == "in_progress")
        for other in (new_service(bob), new_service(ann, model_name="other")):
            async with running(other, tmp_path) as jobs:
                await until(lambda jobs=jobs: jobs.errors(batch))
                codes += [error["code"] for error in jobs.errors(batch)]
        async with running(new_service(ann), tmp_path) as jobs:
            return codes, await ended(jobs, batch, "ann")

    codes, batch = asyncio.run(main())
    assert codes == ["no_key", "model_changed"]
    assert (batch.status, batch.completed) == ("completed", 7)


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
    monkeypatch.setattr("foreword.serving.http._batch_jobs.MAX_OPEN", 2)
    monkeypatch.setattr("foreword.serving.http._batch_jobs._KEPT", 3)

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
