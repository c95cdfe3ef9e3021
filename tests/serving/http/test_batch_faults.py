"""Batches that are killed anywhere, stopped, late, on full and on damaged disks."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
from dataclasses import replace
from functools import partial

import pytest

from foreword.serving import _result_file as result_file_module
from foreword.serving.http import ApiError, Keyring
from foreword.serving.http.batches import _disk as disk_module
from foreword.serving.http.batches._batch_jobs import BatchJobs
from tests.serving.http.batch_tools import (
    URL,
    Slow,
    ended,
    make,
    put,
    records,
    running,
    said,
    service_around,
    until,
)


@pytest.fixture
def new_service(llm, make_service):
    """`new_service(keys, **settings)`: a service without a data directory of its own."""
    make_service()  # with an empty cache, and idle at the end
    return partial(service_around, llm)


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
