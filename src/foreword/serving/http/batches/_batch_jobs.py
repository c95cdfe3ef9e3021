"""Batches as the API has them: made, looked at, cancelled; and the life of all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from foreword.serving.http._errors import ApiError, not_ready
from foreword.serving.http._service import Service
from foreword.serving.http.batches._batch_ledger import Ledger
from foreword.serving.http.batches._batch_runner import BatchRunner, batch_error, file_ids
from foreword.serving.http.batches._batch_state import Batch
from foreword.serving.http.batches._store import FileStore, StoredFile, new_id

WINDOW: Final = "24h"
WINDOW_SECONDS = 24 * 3600
MAX_OPEN = 100
"""Batches of one tenant that have not ended."""
_KEPT = 1000


class BatchJobs:
    """The files and batches of one server, from `start` to `stop`. Belongs to one event loop.

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
        self._service = service
        self._ledger = Ledger(root, quota=service.config.max_stored, clock=clock)
        self._runner = BatchRunner(service, self._ledger, retry_seconds=retry_seconds)

    @property
    def store(self) -> FileStore:
        """The files."""
        return self._ledger.store

    def start(self) -> None:
        """Take up the batches that have not ended."""
        for batch in self._ledger.book.open():
            self._runner.spawn(batch)

    async def stop(self) -> None:
        """Feed no further line, let those that run end within `drain_seconds`, let go of the disk.

        Batches that have not ended are taken up by the next start.
        """
        await self._runner.stop()
        await self._ledger.close()

    async def create(
        self, tenant: str, *, endpoint: str, input_file_id: str, metadata: Mapping[str, str] | None
    ) -> Batch:
        """A new batch, on the disk; it runs from now on.

        Raises:
            ApiError: 404, there is no such file of the tenant's; 429, too many of its batches have
                not ended; 400, its storage is full; 503, the server goes down; 507 or 500, the disk
                is full or broken.
        """
        if self._runner.stopping:
            raise not_ready("draining")
        open_batches = sum(not batch.ended for batch in self._ledger.book.of(tenant))
        if open_batches >= MAX_OPEN:
            raise ApiError(
                429,
                f"{open_batches} of your batches have not ended, the limit is {MAX_OPEN}: wait for "
                "one, or cancel one",
                code="too_many_batches",
                headers={"x-should-retry": "false"},
            )
        self.store.check_room(tenant)
        now = self._ledger.clock()
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
            self._ledger.book.save(batch)
            self._ledger.book.keep(tenant, _KEPT)

        await self._ledger.saved(save, "the batch")
        self._runner.spawn(batch)
        return batch

    def get(self, tenant: str, batch_id: str) -> Batch:
        """A tenant's batch; ApiError 404 where there is none."""
        return self._ledger.book.get(tenant, batch_id)

    def of(self, tenant: str) -> list[Batch]:
        """A tenant's batches, oldest first."""
        return self._ledger.book.of(tenant)

    def counts(self, batch: Batch) -> tuple[int, int]:
        """Lines of a batch that are answered, and lines that failed, so far."""
        results = self._runner.results.get(batch.id)
        if results is None:
            return batch.completed, batch.failed
        failed = len(results.failed)
        return len(results.finished) - failed, failed

    def errors(self, batch: Batch) -> list[dict[str, Any]]:
        """Why a batch failed, or why it does not go on at the moment."""
        if batch.errors:
            return [dict(error) for error in batch.errors]
        pause = self._runner.pauses.get(batch.id)
        return [] if pause is None else [batch_error(pause.code, str(pause))]

    async def cancel(self, tenant: str, batch_id: str) -> Batch:
        """End a batch: running lines are aborted, and what is answered becomes its files.

        Raises:
            ApiError: 404 as `get`; 400, it has ended or is about to; 507 or 500, the disk is full
                or broken.
        """
        batch = self._ledger.book.get(tenant, batch_id)
        if batch.status in ("validating", "in_progress"):
            try:
                await self._runner.halt(batch_id)
                batch = await self._ledger.saved(
                    lambda: self._ledger.change(
                        batch_id, "cancelling", ending="cancelled", **file_ids()
                    ),
                    "the cancellation",
                )
            except ValueError:  # it went on meanwhile
                batch = self._ledger.book.get(tenant, batch_id)
            finally:
                self._runner.spawn(self._ledger.book.now(batch_id))
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
            users = [
                batch.id for batch in self._ledger.book.open() if batch.input_file_id == file_id
            ]
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

        return await self._ledger.saved(delete, "the removal")


def open_batches(service: Service) -> None:
    """Take the data directory, where the service has one, before it is served: whoever starts a
    server hears of a directory that cannot be used at once. `lifespan` does it otherwise.

    Raises:
        ForewordError: the directory cannot be used, or another server uses it.
    """
    if service.batches is None and service.config.data_dir is not None:
        service.batches = BatchJobs(service, service.config.data_dir)


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    """Files and batches from a server's start to its end; nothing without a data directory.

    Raises:
        ForewordError: as `open_batches`.
    """
    await asyncio.to_thread(open_batches, service)
    if service.batches is None:
        yield
        return
    service.batches.start()
    try:
        yield
    finally:
        await service.batches.stop()
        service.batches = None
