"""The disk side of batches: one thread that writes, so that changes follow each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from foreword._errors import ForewordError
from foreword.serving.http.batches._batch_state import Batch, BatchBook, Status
from foreword.serving.http.batches._disk import disk_error
from foreword.serving.http.batches._store import FileStore

T = TypeVar("T")


class Ledger:
    """Files and batches of one data directory, and the thread that changes them.

    What was handed to the thread is done, also when who asked for it was cancelled, and before
    anything that was handed over later.

    Args:
        root: the data directory.
        quota: bytes that the files of one tenant may take; None is no limit.
        clock: seconds since 1970.

    Raises:
        ForewordError: the directory cannot be used, or another server uses it.
    """

    def __init__(
        self, root: Path, *, quota: int | None, clock: Callable[[], float] = time.time
    ) -> None:
        self.clock = clock
        self.store = FileStore(root, quota=quota, clock=clock)
        try:
            self.book = BatchBook(root)
        except OSError as error:
            self.store.close()
            raise ForewordError(
                f"cannot keep batches in {root}: {error.strerror}; give --data another directory"
            ) from error
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="foreword-batches")
        # Long inputs are read apart from it, one at a time: others need threads and memory, too.
        self.reader = ThreadPoolExecutor(1, thread_name_prefix="foreword-batch-reader")

    async def close(self) -> None:
        """Finish what was handed over, and let another server have the directory."""
        await asyncio.to_thread(self.thread.shutdown)
        await asyncio.to_thread(self.reader.shutdown)
        self.store.close()

    async def on_disk(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, called on the thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, work)

    async def read(self, work: Callable[[], T]) -> T:
        """The same on the thread that reads."""
        return await asyncio.get_running_loop().run_in_executor(self.reader, work)

    async def saved(self, work: Callable[[], T], what: str) -> T:
        """`on_disk` for a caller who waits.

        Raises:
            ApiError: 507 or 500, the disk is full or broken; and what `work` raises.
        """
        try:
            return await self.on_disk(work)
        except OSError as error:
            raise disk_error(error, what) from error

    async def moved(self, batch_id: str, status: Status, **changes: Any) -> Batch:
        """The batch in another status, once that is on the disk.

        Raises:
            ValueError: there is no way from the status it is in.
            OSError: it could not be written; the batch is as it was.
        """
        return await self.on_disk(lambda: self.change(batch_id, status, **changes))

    def change(self, batch_id: str, status: Status, **changes: Any) -> Batch:
        """As `moved`, for work on the thread: there `now` is what was written last."""
        batch = self.book.now(batch_id).moved(status, self.clock(), **changes)
        self.book.save(batch)
        return batch
