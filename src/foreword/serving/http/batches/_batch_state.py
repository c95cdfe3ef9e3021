"""What is known of a batch, how it may change, and where that is written down."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from foreword.serving.http._errors import ApiError
from foreword.serving.http.batches._disk import write_whole

Status: TypeAlias = Literal[
    "validating",
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "cancelling",
    "cancelled",
    "expired",
]
Ending: TypeAlias = Literal["completed", "cancelled", "expired"]

_NEXT: dict[Status, tuple[Status, ...]] = {
    "validating": ("in_progress", "cancelling", "failed"),
    "in_progress": ("finalizing", "cancelling", "failed"),
    "finalizing": ("completed", "expired", "failed"),
    "cancelling": ("cancelled", "failed"),
}
_FORMAT = "foreword-server-batch-1"


@dataclass(frozen=True)
class Batch:
    """One batch, as it is written down. Moments in seconds since 1970.

    Attributes:
        tenant: whose it is.
        model: the model it was made for; another one does not go on with it.
        moments: when it entered each status, by the field's name in the API (`completed_at`).
        input_sha256: what the input file held when the batch was validated.
        total: lines of the input that hold a request; 0 before it was validated.
        completed, failed: lines with an answer and lines with an error, once it has ended.
        ending: how it will end, from `finalizing` on.
        output_file_id, error_file_id: chosen before the files are written, so that writing them
            again after a crash writes the same ones; None in the end where there was nothing to
            write.
        usage: tokens of all answers, once it has ended.
        errors: why it failed.
    """

    id: str
    tenant: str
    model: str
    endpoint: str
    input_file_id: str
    completion_window: str
    metadata: Mapping[str, str] | None
    created_at: int
    expires_at: int
    status: Status = "validating"
    moments: Mapping[str, int] = field(default_factory=dict)
    input_sha256: str = ""
    total: int = 0
    completed: int = 0
    failed: int = 0
    ending: Ending | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    usage: Mapping[str, int] | None = None
    errors: tuple[Mapping[str, Any], ...] = ()

    @property
    def ended(self) -> bool:
        return self.status not in _NEXT

    def moved(self, status: Status, now: float, **changes: Any) -> Batch:
        """The batch in another status.

        Raises:
            ValueError: there is no way from here to there.
        """
        if status not in _NEXT.get(self.status, ()):
            raise ValueError(f"a batch that is {self.status} cannot become {status}")
        moments = {**self.moments, f"{status}_at": int(now)}
        return replace(self, status=status, moments=moments, **changes)


class BatchBook:
    """The batches of one data directory: `batches/batch_<hex>.json`, each put there whole.

    What `get` says is on the disk. Methods may be called from any thread.
    """

    def __init__(self, root: Path) -> None:
        self._directory = root / "batches"
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._mutex = threading.Lock()
        self._batches: dict[str, Batch] = {}
        for path in self._directory.iterdir():
            if path.name.startswith("draft-"):
                with suppress(OSError):
                    path.unlink()
            elif path.suffix == ".json" and not path.name.endswith(".meta.json"):
                batch = _read(path)
                if batch is not None and path == self._path(batch.id):
                    self._batches[batch.id] = batch
        for batch in self._batches.values():
            if batch.ended:
                self.forget_results(batch.id)

    def get(self, tenant: str, batch_id: str) -> Batch:
        """A tenant's batch.

        Raises:
            ApiError: 404, there is none of that id, or it is somebody else's.
        """
        batch = self._batches.get(batch_id)
        if batch is None or batch.tenant != tenant:
            said = batch_id if len(batch_id) <= 60 else batch_id[:57] + "..."
            raise ApiError(
                404,
                f"no batch {said!r}: GET /v1/batches lists yours",
                param="batch_id",
                code="batch_not_found",
            )
        return batch

    def now(self, batch_id: str) -> Batch:
        """A batch that is known to be there."""
        return self._batches[batch_id]

    def of(self, tenant: str) -> list[Batch]:
        """A tenant's batches, oldest first."""
        with self._mutex:
            batches = [batch for batch in self._batches.values() if batch.tenant == tenant]
        return sorted(batches, key=lambda batch: (batch.created_at, batch.id))

    def open(self) -> list[Batch]:
        """Batches that have not ended, oldest first."""
        with self._mutex:
            batches = [batch for batch in self._batches.values() if not batch.ended]
        return sorted(batches, key=lambda batch: (batch.created_at, batch.id))

    def save(self, batch: Batch) -> None:
        """Write a batch down; blocks until it is on the disk, and only then `get` says so.

        Raises:
            OSError: it could not be written, and what was written before holds.
        """
        text = json.dumps({"format": _FORMAT, **asdict(batch)})
        write_whole(self._path(batch.id), text.encode())
        with self._mutex:
            self._batches[batch.id] = batch

    def keep(self, tenant: str, most: int) -> None:
        """Forget the oldest of a tenant's batches that have ended, but for so many; blocks.

        Raises:
            OSError: as `save`.
        """
        ended = [batch for batch in self.of(tenant) if batch.ended]
        for batch in ended[: max(0, len(ended) - most)]:
            self._path(batch.id).unlink(missing_ok=True)
            with self._mutex:
                self._batches.pop(batch.id, None)

    def results(self, batch_id: str) -> Path:
        """Where a batch collects its records until it ends."""
        return self._directory / f"{batch_id}.jsonl"

    def forget_results(self, batch_id: str) -> None:
        """Remove the collected records, which have become files."""
        results = self.results(batch_id)
        for path in (results, results.with_name(results.name + ".meta.json")):
            with suppress(OSError):
                path.unlink()

    def _path(self, batch_id: str) -> Path:
        return self._directory / f"{batch_id}.json"


def _read(path: Path) -> Batch | None:
    """A batch that was written down; None for what is not ours, which is left alone."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if value.pop("format", None) != _FORMAT:
            return None
        value["errors"] = tuple(value["errors"])
        return Batch(**value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
