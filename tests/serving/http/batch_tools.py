"""Batches in process: made, waited for, held up, and read back."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager

from foreword.serving.http import ServerConfig, Service
from foreword.serving.http.batches._batch_jobs import BatchJobs

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


def service_around(llm, keys=None, **settings):
    """A service with a configuration of such fields."""
    return Service.of(llm, config=ServerConfig(**settings), keys=keys)
