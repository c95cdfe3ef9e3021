"""Batches: made, run beside the other requests, written down so that a kill loses nothing.

Whatever happens, what stands on the disk is true: a status is there before anything is done on its
account, a record is there once per line, and the ids of the result files are chosen before the
files are written. A start takes up every batch that has not ended.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from foreword.serving._batch_lines import summarise
from foreword.serving._batch_run import BatchDefaults
from foreword.serving._errors import BatchFileError
from foreword.serving._result_file import ResultFile
from foreword.serving.http._batch_files import publish
from foreword.serving.http._batch_state import Batch, BatchBook, Ending, Status
from foreword.serving.http._batch_work import AT_ONCE, BatchWork, Halt, Seats
from foreword.serving.http._disk import disk_error, is_full
from foreword.serving.http._errors import ApiError
from foreword.serving.http._keys import Caller
from foreword.serving.http._service import Service
from foreword.serving.http._store import FileStore, StoredFile, new_id

log = logging.getLogger("foreword.server.batches")
T = TypeVar("T")

WINDOW: Final = "24h"
WINDOW_SECONDS = 24 * 3600
MAX_REQUESTS = 50_000
MAX_OPEN = 100
_KEPT = 1000


class _Pause(Exception):  # noqa: N818 - a batch that waits has not failed
    """A batch cannot go on for now: the reason, as the API tells it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BatchJobs:
    """The files and batches of one server, until `stop`. Belongs to one event loop.

    Args:
        root: the data directory.
        clock: seconds since 1970.
        retry_seconds: how long a batch that cannot go on (the disk is full) waits to try again.

    Raises:
        ForewordError: the directory cannot be used, or another server uses it.
    """

    def __init__(
        self,
        service: Service,
        root: Path,
        *,
        clock: Callable[[], float] = time.time,
        retry_seconds: float = 30.0,
    ) -> None:
        self.store = FileStore(root, quota=service.config.max_stored, clock=clock)
        try:
            self._book = BatchBook(root)
        except BaseException:
            self.store.close()
            raise
        self._service = service
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._seats = Seats(service.llm.max_batch)
        self._turns: dict[str, Seats] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._works: dict[str, BatchWork] = {}
        self._results: dict[str, ResultFile] = {}
        self._pauses: dict[str, _Pause] = {}
        self._stopping = asyncio.Event()
        # One thread writes: changes follow each other, also when who asked for them was cancelled.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="foreword-batches")

    def start(self) -> None:
        """Take up the batches that have not ended."""
        for batch in self._book.open():
            self._spawn(batch)

    async def stop(self) -> None:
        """Feed no further line, let those that run end within `drain_seconds`, let go of the disk.

        Batches that have not ended are taken up by the next start.
        """
        self._stopping.set()
        for work in self._works.values():
            work.drain()
        tasks = set(self._tasks.values())
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=self._service.config.drain_seconds)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
        await asyncio.to_thread(self._disk.shutdown)
        self.store.close()

    # -- what routes ask ---------------------------------------------------------------------------

    async def create(
        self, tenant: str, *, endpoint: str, input_file_id: str, metadata: Mapping[str, str] | None
    ) -> Batch:
        """A new batch, on the disk; it runs from now on.

        Raises:
            ApiError: 404, there is no such file of the tenant's; 429, too many of its batches have
                not ended; 400, its storage is full; 503, the server goes down; 507 or 500, the disk
                is full or broken.
        """
        if self._stopping.is_set():
            raise ApiError(503, "the server is going down: try again later", code="not_ready")
        open_batches = sum(not batch.ended for batch in self._book.of(tenant))
        if open_batches >= MAX_OPEN:
            raise ApiError(
                429,
                f"{open_batches} of your batches have not ended, the limit is {MAX_OPEN}: wait for "
                "one, or cancel one",
                code="too_many_batches",
                headers={"x-should-retry": "false"},
            )
        self.store.check_room(tenant)
        now = self._clock()
        batch = Batch(
            id=new_id("batch_"),
            tenant=tenant,
            model=self._service.model,
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=WINDOW,
            metadata=metadata,
            created_at=int(now),
            expires_at=int(now) + WINDOW_SECONDS,
        )

        def save() -> None:
            file = self.store.get(tenant, input_file_id)
            if file.purpose != "batch":
                raise ApiError(400, f"{file.id} is no input: upload one", param="input_file_id")
            self._book.save(batch)
            self._book.keep(tenant, _KEPT)

        await self._saved(save, "the batch")
        self._spawn(batch)
        return batch

    def get(self, tenant: str, batch_id: str) -> Batch:
        """A tenant's batch; ApiError 404 where there is none."""
        return self._book.get(tenant, batch_id)

    def of(self, tenant: str) -> list[Batch]:
        """A tenant's batches, oldest first."""
        return self._book.of(tenant)

    def counts(self, batch: Batch) -> tuple[int, int]:
        """Lines of a batch that are answered, and lines that failed, so far."""
        results = self._results.get(batch.id)
        if results is None:
            return batch.completed, batch.failed
        failed = len(results.failed)
        return len(results.finished) - failed, failed

    def errors(self, batch: Batch) -> list[dict[str, Any]]:
        """Why a batch failed, or why it does not go on at the moment."""
        if batch.errors:
            return [dict(error) for error in batch.errors]
        pause = self._pauses.get(batch.id)
        return [] if pause is None else [_error(pause.code, str(pause))]

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """End a batch: running lines are aborted, and what is answered becomes its files.

        Raises:
            ApiError: 404 as `get`; 400, it has ended or is about to; 507 or 500, the disk is full
                or broken.
        """
        batch = self._book.get(tenant, batch_id)
        if batch.status in ("validating", "in_progress"):
            try:
                await self._halt(batch_id)
                batch = await self._saved(
                    lambda: self._change(batch_id, "cancelling", ending="cancelled", **_file_ids()),
                    "the cancellation",
                )
            except ValueError:  # it went on meanwhile
                batch = self._book.get(tenant, batch_id)
            finally:
                self._spawn(self._book.now(batch_id))
        if batch.ending != "cancelled":
            raise ApiError(
                400, f"the batch is {batch.status} and cannot be cancelled", code="not_cancellable"
            )
        return batch

    async def delete_file(self, tenant: str, file_id: str) -> StoredFile:
        """Remove a file that no batch still reads.

        Raises:
            ApiError: 404, no such file of the tenant's; 400, a batch reads it; 500, the disk.
        """

        def delete() -> StoredFile:
            file = self.store.get(tenant, file_id)
            users = [batch.id for batch in self._book.open() if batch.input_file_id == file_id]
            if users:
                raise ApiError(
                    400,
                    f"{file_id} is the input of {users[0]}, which has not ended: wait for it, or "
                    "cancel it",
                    param="file_id",
                    code="file_in_use",
                )
            self.store.delete(file)
            return file

        return await self._saved(delete, "the removal")

    # -- running -----------------------------------------------------------------------------------

    def _spawn(self, batch: Batch) -> None:
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

    async def _halt(self, batch_id: str) -> None:
        task = self._tasks.get(batch_id)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _run(self, batch: Batch) -> None:
        """Bring a batch to its end, however long that takes."""
        waits = batch.status in ("validating", "in_progress")
        turns = self._turns.setdefault(batch.tenant, Seats(AT_ONCE))
        if waits:
            await turns.take(1)
        try:
            while not self._stopping.is_set():
                try:
                    self._pauses.pop(batch.id, None)
                    if await self._go_on(batch.id):
                        return
                except _Pause as pause:
                    self._pauses[batch.id] = pause
                    log.warning("batch %s waits: %s", batch.id, pause)
                except Halt:
                    pass
                await self._rest()
        finally:
            self._pauses.pop(batch.id, None)
            if waits:
                turns.give(1)

    async def _rest(self) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), self._retry_seconds)
        except asyncio.TimeoutError:
            return

    async def _go_on(self, batch_id: str) -> bool:
        """As far as it gets; whether the batch has ended."""
        try:
            batch = self._book.now(batch_id)
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
            file = self.store.get(batch.tenant, batch.input_file_id)
            summary = await asyncio.to_thread(summarise, self.store.path(file))
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
        return await self._moved(
            batch.id, "in_progress", total=summary.requests, input_sha256=summary.sha256
        )

    async def _answer(self, batch: Batch) -> Batch:
        """Answer the lines that have no record; the batch, in the next status if all have one."""
        if batch.model != self._service.model:
            raise _Pause(
                "model_changed",
                f"this batch was made for model {batch.model!r} and the server serves "
                f"{self._service.model!r}: it goes on when that model is served again",
            )
        caller = self._service.keys.caller(batch.tenant)
        if caller is None:
            message = "the key of this batch's owner was withdrawn: it goes on when there is one"
            raise _Pause("no_key", message)
        path = self._book.results(batch.id)
        results = await self._on_disk(lambda: ResultFile(path, _identity(batch)))
        self._results[batch.id] = results
        ending: Ending | None = None
        try:
            work = self._work(batch, caller, results)
            self._works[batch.id] = work
            running = asyncio.get_running_loop().create_task(work.run())
            try:
                seconds = max(0.0, batch.expires_at - self._clock())
                done, _ = await asyncio.wait({running}, timeout=seconds)
            finally:
                if not running.done():
                    running.cancel()
                    await asyncio.wait({running})
            if done:
                ending = "completed" if running.result() else None
            else:
                said = f"the batch's {batch.completion_window} were over before it was answered"
                await self._on_disk(lambda: work.expire(said))
                ending = "expired"
        finally:
            self._works.pop(batch.id, None)
            await self._on_disk(results.close)
        if ending is None:
            return batch
        return await self._moved(batch.id, "finalizing", ending=ending, **_file_ids())

    def _work(self, batch: Batch, caller: Caller, results: ResultFile) -> BatchWork:
        file = self.store.get(batch.tenant, batch.input_file_id)
        return BatchWork(
            self._service,
            caller,
            self.store.path(file),
            results,
            endpoint=batch.endpoint,
            seats=self._seats,
            disk=self._disk,
            defaults=BatchDefaults(),
        )

    async def _finish(self, batch: Batch) -> Batch:
        """Make files of the records. May be done again: the same files come of it."""
        try:
            published = await asyncio.to_thread(
                publish, self.store, batch, self._book.results(batch.id)
            )
        except ApiError as error:
            raise _Pause(error.code or "disk_error", _WAITS) from error
        batch = await self._moved(batch.id, batch.ending or "cancelled", **published)
        self._results.pop(batch.id, None)
        await self._on_disk(lambda: self._book.forget_results(batch.id))
        return batch

    async def _fail(self, batch_id: str, code: str, message: str) -> Batch:
        return await self._moved(batch_id, "failed", errors=(_error(code, message),))

    # -- the disk ----------------------------------------------------------------------------------

    async def _on_disk(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, work)

    async def _saved(self, work: Callable[[], T], what: str) -> T:
        """`_on_disk` for a caller who waits."""
        try:
            return await self._on_disk(work)
        except OSError as error:
            raise disk_error(error, what) from error

    async def _moved(self, batch_id: str, status: Status, **changes: Any) -> Batch:
        return await self._on_disk(lambda: self._change(batch_id, status, **changes))

    def _change(self, batch_id: str, status: Status, **changes: Any) -> Batch:
        """On the one thread that writes, so `now` is what was written last."""
        batch = self._book.now(batch_id).moved(status, self._clock(), **changes)
        self._book.save(batch)
        return batch


_WAITS = (
    "the server's disk is full: what is answered is kept, and the batch goes on by itself when "
    "there is room again; delete files you no longer need, or ask the operator"
)


def _disk_pause(error: OSError) -> _Pause:
    if is_full(error):
        return _Pause("disk_full", _WAITS)
    return _Pause("disk_error", "the server's disk failed: the batch goes on when it works again")


def _file_ids() -> dict[str, str]:
    return {"output_file_id": new_id("file-"), "error_file_id": new_id("file-")}


def _identity(batch: Batch) -> dict[str, Any]:
    return {
        "batch": batch.id,
        "input_sha256": batch.input_sha256,
        "model": batch.model,
        "endpoint": batch.endpoint,
    }


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    """Files and batches from a server's start to its end; nothing without a data directory.

    Raises:
        ForewordError: the directory cannot be used, or another server uses it.
    """
    if service.config.data_dir is None:
        yield
        return
    service.batches = await asyncio.to_thread(BatchJobs, service, service.config.data_dir)
    service.batches.start()
    try:
        yield
    finally:
        await service.batches.stop()
        service.batches = None
