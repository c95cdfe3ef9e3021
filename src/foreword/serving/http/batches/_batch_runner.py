"""Bringing batches to their end, each status written down before anything is done on its account.

A record is there once per line, and the ids of the result files are chosen before the files are
written: whenever the process is killed, the next start goes on from what stands on the disk.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from foreword.serving._batch_lines import summarise
from foreword.serving._batch_run import BatchDefaults
from foreword.serving._errors import BatchFileError
from foreword.serving._result_file import ResultFile
from foreword.serving.http._errors import ApiError
from foreword.serving.http._service import Service
from foreword.serving.http.batches._batch_files import publish
from foreword.serving.http.batches._batch_ledger import Ledger
from foreword.serving.http.batches._batch_seats import Seats
from foreword.serving.http.batches._batch_state import Batch, Ending
from foreword.serving.http.batches._batch_work import AT_ONCE, BatchWork, Halt
from foreword.serving.http.batches._disk import is_full
from foreword.serving.http.batches._store import new_id
from foreword.serving.http.guard._keys import Caller

log = logging.getLogger("foreword.server.batches")

MAX_REQUESTS = 50_000
"""Lines of one batch."""

_WAITS = (
    "the server's disk is full: what is answered is kept, and the batch goes on by itself when "
    "there is room again; delete files you no longer need, or ask the operator"
)


class Pause(Exception):  # noqa: N818 - a batch that waits has not failed
    """A batch cannot go on for now: the reason, as the API tells it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BatchRunner:
    """Runs batches beside the other requests. Belongs to one event loop.

    Args:
        retry_seconds: how long a batch that cannot go on (the disk is full) waits to try again.

    Attributes:
        results: records of batches that were worked on and have not ended.
        pauses: why batches do not go on at the moment.
    """

    def __init__(self, service: Service, ledger: Ledger, *, retry_seconds: float) -> None:
        self.results: dict[str, ResultFile] = {}
        self.pauses: dict[str, Pause] = {}
        self._service = service
        self._ledger = ledger
        self._retry_seconds = retry_seconds
        self._seats = Seats(service.llm.max_batch)
        self._turns: dict[str, Seats] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, BatchWork] = {}
        self._stopping = asyncio.Event()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def stop(self) -> None:
        """Feed no further line; let those that run end within `drain_seconds`, abort the rest."""
        self._stopping.set()
        for work in self._works.values():
            work.drain()
        tasks = set(self._tasks.values())
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=self._service.config.drain_seconds)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def spawn(self, batch: Batch) -> None:
        """Go on with a batch, unless it has ended or is being worked on."""
        task = self._tasks.get(batch.id)
        if self._stopping.is_set() or batch.ended or (task is not None and not task.done()):
            return
        task = asyncio.get_running_loop().create_task(self._run(batch), name=batch.id)
        self._tasks[batch.id] = task
        task.add_done_callback(lambda task: self._forget(batch.id, task))

    def _forget(self, batch_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(batch_id) is task:
            del self._tasks[batch_id]
        if not task.cancelled() and task.exception() is not None:
            log.error("batch %s stopped until the next start", batch_id, exc_info=task.exception())

    async def halt(self, batch_id: str) -> None:
        """Stop working on a batch: what runs is aborted, what is recorded stays."""
        task = self._tasks.get(batch_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self, batch: Batch) -> None:
        """Bring a batch to its end, however long that takes."""
        known = ""
        try:
            while not self._stopping.is_set():
                try:
                    self.pauses.pop(batch.id, None)
                    if await self._in_turn(batch):
                        return
                except Pause as pause:
                    self.pauses[batch.id] = pause
                    if pause.code != known:  # not each time it is tried
                        log.warning("batch %s waits: %s", batch.id, pause)
                    known = pause.code
                except Halt:
                    pass
                await self._rest()
        finally:
            self.pauses.pop(batch.id, None)

    async def _in_turn(self, batch: Batch) -> bool:
        """`_go_on` when the tenant's other batches leave room; what only ends needs none."""
        if self._ledger.book.now(batch.id).status not in ("validating", "in_progress"):
            return await self._go_on(batch.id)
        turns = self._turns.setdefault(batch.tenant, Seats(AT_ONCE))
        await turns.take(1)
        try:
            return await self._go_on(batch.id)
        finally:
            turns.give(1)

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._retry_seconds)
        except asyncio.TimeoutError:
            return

    async def _go_on(self, batch_id: str) -> bool:
        """As far as it gets; whether the batch has ended."""
        try:
            batch = self._ledger.book.now(batch_id)
            if batch.status == "validating":
                batch = await self._validate(batch)
            if batch.status == "in_progress":
                batch = await self._answer(batch)
            if batch.status in ("finalizing", "cancelling"):
                batch = await self._finish(batch)
            return batch.ended
        except BatchFileError as error:
            log.error("batch %s: %s", batch_id, error)
            if isinstance(error.__cause__, OSError):
                raise _disk_pause(error.__cause__) from error
            message = "the results so far are damaged, or belong to another input: run it again"
            await self._fail(batch_id, "results_damaged", message)
            return True
        except OSError as error:
            raise _disk_pause(error) from error

    async def _validate(self, batch: Batch) -> Batch:
        try:
            file = self._ledger.store.get(batch.tenant, batch.input_file_id)
            path = self._ledger.store.path(file)
            summary = await self._ledger.read(lambda: summarise(path))
        except ApiError:
            return await self._fail(batch.id, "input_file_missing", "the input file is gone")
        except BatchFileError as error:
            if isinstance(error.__cause__, OSError):
                raise
            message = "the input file holds no request: write one JSON object per line"
            return await self._fail(batch.id, "empty_file", message)
        if summary.requests > MAX_REQUESTS:
            message = (
                f"the input file holds {summary.requests} requests, the limit is {MAX_REQUESTS}: "
                "split it"
            )
            return await self._fail(batch.id, "too_many_requests", message)
        return await self._ledger.moved(
            batch.id, "in_progress", total=summary.requests, input_sha256=summary.sha256
        )

    async def _answer(self, batch: Batch) -> Batch:
        """Answer the lines that have no record; the batch, in the next status if all have one."""
        if batch.model != self._service.model:
            raise Pause(
                "model_changed",
                f"this batch was made for model {batch.model!r} and the server serves "
                f"{self._service.model!r}: it goes on when that model is served again",
            )
        caller = self._service.keys.caller(batch.tenant)
        if caller is None:
            message = "the key of this batch's owner was withdrawn: it goes on when there is one"
            raise Pause("no_key", message)
        try:
            results = await self._ledger.on_disk(lambda: self._open(batch))
            work = self._work(batch, caller, results)
            self._works[batch.id] = work
            ending = await self._end_of(work, batch)
        finally:
            self._works.pop(batch.id, None)
            await self._ledger.on_disk(lambda: self._close(batch.id))
        if ending is None:
            return batch
        failed = len(results.failed)
        completed = len(results.finished) - failed
        return await self._ledger.moved(
            batch.id,
            "finalizing",
            ending=ending,
            completed=completed,
            failed=failed,
            **file_ids(),
        )

    async def _end_of(self, work: BatchWork, batch: Batch) -> Ending | None:
        """How the work ended: every line has a record then; None where it was stopped before."""
        running = asyncio.get_running_loop().create_task(work.run())
        try:
            seconds = max(0.0, batch.expires_at - self._ledger.clock())
            done, _ = await asyncio.wait({running}, timeout=seconds)
        finally:
            if not running.done():
                running.cancel()
                await asyncio.wait({running})
        if done:
            return "completed" if running.result() else None
        said = f"the batch's {batch.completion_window} were over before it was answered"
        await self._ledger.on_disk(lambda: work.expire(said))
        return "expired"

    def _open(self, batch: Batch) -> ResultFile:
        """On the thread, like `_close` after it: a file that is opened is closed, even if who asked
        for it is cancelled before he has it."""
        results = ResultFile(self._ledger.book.results(batch.id), _identity(batch))
        self.results[batch.id] = results
        return results

    def _close(self, batch_id: str) -> None:
        results = self.results.get(batch_id)
        if results is not None:
            results.close()

    def _work(self, batch: Batch, caller: Caller, results: ResultFile) -> BatchWork:
        file = self._ledger.store.get(batch.tenant, batch.input_file_id)
        return BatchWork(
            self._service,
            caller,
            self._ledger.store.path(file),
            results,
            endpoint=batch.endpoint,
            seats=self._seats,
            disk=self._ledger.thread,
            reader=self._ledger.reader,
            defaults=BatchDefaults(),
        )

    async def _finish(self, batch: Batch) -> Batch:
        """Make files of the records. May be done again: the same files come of it."""
        try:
            results = self._ledger.book.results(batch.id)
            store = self._ledger.store
            published = await self._ledger.on_disk(lambda: publish(store, batch, results))
        except ApiError as error:
            raise Pause(error.code or "disk_error", _WAITS) from error
        batch = await self._ledger.moved(batch.id, batch.ending or "cancelled", **published)
        self.results.pop(batch.id, None)
        await self._ledger.on_disk(lambda: self._ledger.book.forget_results(batch.id))
        return batch

    async def _fail(self, batch_id: str, code: str, message: str) -> Batch:
        return await self._ledger.moved(batch_id, "failed", errors=(batch_error(code, message),))


def _disk_pause(error: OSError) -> Pause:
    if is_full(error):
        return Pause("disk_full", _WAITS)
    return Pause("disk_error", "the server's disk failed: the batch goes on when it works again")


def file_ids() -> dict[str, str]:
    """Names for a batch's files."""
    return {"output_file_id": new_id("file-"), "error_file_id": new_id("file-")}


def _identity(batch: Batch) -> dict[str, Any]:
    return {
        "batch": batch.id,
        "input_sha256": batch.input_sha256,
        "model": batch.model,
        "endpoint": batch.endpoint,
    }


def batch_error(code: str, message: str) -> dict[str, Any]:
    """An error of a batch as the API tells it."""
    return {"code": code, "message": message, "param": None, "line": None}
