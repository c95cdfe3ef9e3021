"""Files that callers leave here, and files that are made for them: bytes and a sidecar each.

    DIR/files/file-<32 hex digits>        the bytes
    DIR/files/file-<32 hex digits>.json   owner, name, purpose; a file without one is not there
    DIR/lock                              held by the one server that uses DIR

Bytes come first and the sidecar last, both by rename, so a killed server leaves a whole file or
rubbish that the next start sweeps away. No name that a caller gives ever becomes a path.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from foreword._errors import ForewordError
from foreword.serving.http._errors import ApiError
from foreword.serving.http.batches._disk import disk_error, sync_directory, write_all, write_whole

try:
    import fcntl
except ImportError:  # Windows: two servers on one directory are not kept apart there
    fcntl = None  # type: ignore[assignment]

MAX_FILES = 10_000
"""Files of one tenant."""

_LEAST = 4096  # what a file costs at least: it has a sidecar


@dataclass(frozen=True)
class StoredFile:
    """One file: whose it is, its size in bytes, seconds since 1970, the name it was given."""

    id: str
    tenant: str
    bytes: int
    created_at: int
    filename: str
    purpose: str


def new_id(kind: str) -> str:
    """A name that nobody guesses: `kind` and 128 random bits."""
    return kind + secrets.token_hex(16)


class FileStore:
    """The files of one data directory, known by id and seen by their owners only.

    Reading the index costs no disk access. All methods may be called from any thread.

    Args:
        root: the directory; made if it is not there.
        quota: bytes that one tenant may keep by uploading; None is no limit.

    Raises:
        ForewordError: the directory cannot be used, or another server uses it.
    """

    def __init__(
        self, root: Path, *, quota: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.root = root
        self.quota = quota
        self.clock = clock
        self._directory = root / "files"
        self._mutex = threading.Lock()
        self._files: dict[str, StoredFile] = {}
        self._used: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ForewordError(
                f"cannot keep files in {root}: {error.strerror}; give --data another directory"
            ) from error
        try:
            self._take_lock()
            self._sweep()
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Let another server have the directory; closing twice does nothing."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def get(self, tenant: str, file_id: str) -> StoredFile:
        """A tenant's file.

        Raises:
            ApiError: 404, there is none of that id, or it is somebody else's.
        """
        file = self._files.get(file_id)
        if file is None or file.tenant != tenant:
            raise ApiError(
                404,
                f"no file {_short(file_id)}: GET /v1/files lists yours",
                param="file_id",
                code="file_not_found",
            )
        return file

    def of(self, tenant: str) -> list[StoredFile]:
        """A tenant's files, oldest first."""
        with self._mutex:
            files = [file for file in self._files.values() if file.tenant == tenant]
        return sorted(files, key=lambda file: (file.created_at, file.id))

    def path(self, file: StoredFile) -> Path:
        """Where the bytes are."""
        return self._directory / file.id

    def draft(self, tenant: str, *, file_id: str | None = None, purpose: str = "batch") -> Draft:
        """A file that is being written; it is nobody's until `commit`.

        With a `file_id` of its own it takes the place of that file, and the quota does not count:
        so are the results of a batch put down, and put down again after a crash.
        """
        return Draft(self, tenant, file_id, purpose)

    def delete(self, file: StoredFile) -> None:
        """Remove a file; who reads it at that moment reads on.

        Raises:
            ApiError: 500, the disk does not let go of it.
        """
        try:
            self._sidecar(file.id).unlink(missing_ok=True)
            sync_directory(self._directory)  # the sidecar first: bytes alone are rubbish
            self.path(file).unlink(missing_ok=True)
        except OSError as error:
            raise disk_error(error, f"the removal of {file.id}") from error
        with self._mutex:
            self._leave(file.id)

    def check_room(self, tenant: str) -> None:
        """Whether the tenant may leave anything more here.

        Raises:
            ApiError: 400, its quota is used up, or it has too many files.
        """
        self.reserve(tenant, 1)
        self.reserve(tenant, -1)

    # -- for drafts --------------------------------------------------------------------------------

    def reserve(self, tenant: str, size: int) -> None:
        """Set room of a tenant's quota aside; a negative size gives it back.

        Raises:
            ApiError: 400, the quota does not reach, or there are too many files.
        """
        with self._mutex:
            used = self._used.get(tenant, 0)
            if size > 0 and self._counts[tenant] >= MAX_FILES:
                raise ApiError(
                    400,
                    f"you have {self._counts[tenant]} files, the limit is {MAX_FILES}: delete some",
                    code="storage_quota_exceeded",
                )
            if self.quota is not None and size > 0 and used + size > self.quota:
                raise ApiError(
                    400,
                    f"this file does not fit: your files may take {self.quota} bytes together and "
                    "take nearly all of that; delete some",
                    code="storage_quota_exceeded",
                )
            self._charge(tenant, size)

    def adopt(self, draft: Path, file: StoredFile) -> None:
        """Make a written and synced draft a file: bytes first, then the sidecar."""
        os.replace(draft, self.path(file))
        write_whole(self._sidecar(file.id), json.dumps(asdict(file)).encode())
        with self._mutex:
            self._leave(file.id)
            self._enter(file)

    def discard(self, file_id: str, draft: Path) -> None:
        """Remove what a draft that failed has left; a file of that id stays if it has a sidecar."""
        leftovers = [draft]
        if not self._sidecar(file_id).exists():
            leftovers.append(self._directory / file_id)
        for path in leftovers:
            with suppress(OSError):
                path.unlink()

    def draft_path(self, file_id: str) -> Path:
        return self._directory / f"draft-{file_id}"

    # ----------------------------------------------------------------------------------------------

    def _enter(self, file: StoredFile) -> None:
        self._files[file.id] = file
        self._counts[file.tenant] += 1
        self._charge(file.tenant, _cost(file))

    def _leave(self, file_id: str) -> None:
        file = self._files.pop(file_id, None)
        if file is not None:
            self._counts[file.tenant] -= 1
            self._charge(file.tenant, -_cost(file))

    def _charge(self, tenant: str, size: int) -> None:
        used = self._used.get(tenant, 0) + size
        if used:
            self._used[tenant] = used
        else:
            self._used.pop(tenant, None)

    def _sidecar(self, file_id: str) -> Path:
        return self._directory / f"{file_id}.json"

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ForewordError(
                f"another server keeps its files in {self.root}: give --data another directory"
            ) from None

    def _sweep(self) -> None:
        """Learn what is there; remove what a killed server left half done."""
        for path in self._directory.iterdir():
            if path.suffix != ".json" or path.name.startswith("draft-"):
                continue
            try:
                file = StoredFile(**json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError, TypeError):
                continue  # not ours: left alone
            if self.path(file).is_file() and path == self._sidecar(file.id):
                self._enter(file)
        for path in self._directory.iterdir():
            orphan = path.name.startswith("file-") and not path.suffix
            if path.name.startswith("draft-") or (orphan and path.name not in self._files):
                with suppress(OSError):
                    path.unlink()


class Draft:
    """Bytes on their way into the store. Leaving the `with` without `commit` leaves nothing."""

    def __init__(self, store: FileStore, tenant: str, file_id: str | None, purpose: str) -> None:
        self.size = 0
        self._store = store
        self._tenant = tenant
        self._purpose = purpose
        self._counts = file_id is None
        self._id = file_id or new_id("file-")
        self._path = store.draft_path(self._id)
        self._reserved = 0
        self._file = -1
        # A caller that is cancelled leaves the thread that writes for it behind: the file must not
        # be closed, and its number given to another, under that thread's hands.
        self._busy = threading.Lock()
        if self._counts:
            self._reserve(_LEAST)
        try:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        except OSError as error:
            self._release()
            raise disk_error(error, "the file") from error

    def __enter__(self) -> Draft:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._busy:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                self._store.discard(self._id, self._path)
            self._release()

    def write(self, data: bytes) -> None:
        """Append; blocks as the disk does.

        Raises:
            ApiError: 400, the tenant's quota is used up; 507 or 500, the disk is full or broken.
        """
        with self._busy:
            if self._file < 0:
                raise ValueError("the draft is closed")
            if self._counts and self.size + len(data) > self._reserved:
                self._reserve(self.size + len(data) - self._reserved)
            try:
                write_all(self._file, data)
            except OSError as error:
                raise disk_error(error, "the file") from error
            self.size += len(data)

    def commit(self, filename: str) -> StoredFile:
        """The file, on the disk and in the store.

        Raises:
            ApiError: 507 or 500, the disk is full or broken; nothing is left of it.
        """
        with self._busy:
            if self._file < 0:
                raise ValueError("the draft is closed")
            file = StoredFile(
                id=self._id,
                tenant=self._tenant,
                bytes=self.size,
                created_at=int(self._store.clock()),
                filename=filename,
                purpose=self._purpose,
            )
            try:
                os.fsync(self._file)
                self._store.adopt(self._path, file)
            except OSError as error:
                raise disk_error(error, "the file") from error
            os.close(self._file)
            self._file = -1
            self._release()
            return file

    def _reserve(self, size: int) -> None:
        self._store.reserve(self._tenant, size)
        self._reserved += size

    def _release(self) -> None:
        self._store.reserve(self._tenant, -self._reserved)
        self._reserved = 0


def _cost(file: StoredFile) -> int:
    return max(file.bytes, _LEAST)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
