"""The output of a batch: a file that can be killed at any moment and taken up again.

One JSON record per line, in the order in which requests finish. A record is handed to the system
in one piece, so a killed process loses none that it has written; the file is synced to the disk
about once a second, so a machine that loses power loses about a second, and those requests simply
run again. A line torn in the middle is cut off when the file is opened next.

The file belongs to one input and one set of settings: `OUT.meta.json` beside it says which.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from foreword.serving._errors import BatchFileError

try:
    import fcntl
except ImportError:  # not on Windows, where two runs on one file are nobody's fault but the user's
    fcntl = None  # type: ignore[assignment]

_FORMAT = "foreword-batch-1"
_SYNC_SECONDS = 1.0


class ResultFile:
    """Appends records; knows which lines have one already.

    Args:
        path: the output file; made if it is not there.
        identity: what the results depend on (the input's sha256, the model, ...), JSON values.
        overwrite: drop what an earlier run has written.

    Attributes:
        finished: the lines that have a record.
        failed: those of them whose record is an error.

    Raises:
        BatchFileError: the file cannot be written, belongs to another identity, was not written by
            a batch run, or is being written by another process.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.meta_path = path.with_name(path.name + ".meta.json")
        self.finished: set[int] = set()
        self.failed: set[int] = set()
        self._synced = time.monotonic()
        if path.exists() and not path.is_file():
            raise BatchFileError(f"{path} is not a regular file: give --out a file's name")
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise BatchFileError(f"cannot write {path}: {error.strerror}") from error
        try:
            self._lock()
            if overwrite:
                os.ftruncate(self._file, 0)
                os.fsync(self._file)
            if os.fstat(self._file).st_size == 0:
                self._write_meta(identity)
            else:
                self._check_meta(identity)
            self._end = self._scan()
        except OSError as error:
            os.close(self._file)
            raise BatchFileError(f"cannot write {path}: {error.strerror}") from error
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; its `line` must not have one yet.

        Raises:
            BatchFileError: the disk is full or gone. The records before this one are intact.
        """
        line = int(record["line"])
        if line in self.finished:
            raise ValueError(f"line {line} has its record already")
        data = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            self._append(data)
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise self._disk_error(error) from error
        self.finished.add(line)
        if record["error"] is not None:
            self.failed.add(line)

    def sync(self) -> None:
        """Wait until everything written is on the disk."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync and close; closing twice does nothing.

        Raises:
            BatchFileError: the last second of records may not have reached the disk.
        """
        if self._file < 0:
            return
        file, self._file = self._file, -1
        try:
            os.fsync(file)
        except OSError as error:
            raise self._disk_error(error) from error
        finally:
            os.close(file)

    def _append(self, data: bytes) -> None:
        done = 0
        try:
            os.lseek(self._file, self._end, os.SEEK_SET)
            while done < len(data):
                done += os.write(self._file, data[done:])
        except BaseException:
            if done < len(data):  # do not leave half a line behind
                os.ftruncate(self._file, self._end)
            else:
                self._end += done
            raise
        self._end += done

    def _disk_error(self, error: OSError) -> BatchFileError:
        return BatchFileError(
            f"cannot write {self.path}: {error.strerror}. The {len(self.finished)} results before "
            "are kept; make room and run the same command again to go on"
        )

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BatchFileError(
                f"another run is writing {self.path}: wait for it, or give another --out"
            ) from None

    def _write_meta(self, identity: Mapping[str, Any]) -> None:
        """Put the sidecar in place whole, before the first record."""
        text = json.dumps({"format": _FORMAT, **identity}, indent=2) + "\n"
        draft = self.meta_path.with_name(self.meta_path.name + ".tmp")
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.meta_path)

    def _check_meta(self, identity: Mapping[str, Any]) -> None:
        way_out = "give another --out, or --overwrite to drop its results"
        try:
            meta = json.loads(self.meta_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            meta = None
        if not isinstance(meta, dict) or meta.get("format") != _FORMAT:
            raise BatchFileError(
                f"{self.path} is there already and {self.meta_path.name}, which says what it "
                f"belongs to, is missing or unreadable: {way_out}"
            )
        changed = [name for name, value in identity.items() if meta.get(name) != value]
        if changed:
            name = changed[0]
            what = (
                "another input, or the input has changed"
                if name == "input_sha256"
                else f"{name} {json.dumps(meta.get(name))}, not {json.dumps(identity[name])}"
            )
            raise BatchFileError(f"{self.path} holds results of {what}: {way_out}")

    def _scan(self) -> int:
        """Find the lines that have a record; cut off a torn end. Returns the file's length then."""
        end = 0
        with open(self.path, "rb") as records:
            for number, raw in enumerate(records, start=1):
                line = _finished_line(raw)
                if line is None:
                    if records.read(1):
                        raise BatchFileError(
                            f"{self.path} is damaged at line {number}: mend or remove that line, "
                            "give another --out, or --overwrite to drop its results"
                        )
                    break
                self.finished.add(line[0])
                if line[1]:
                    self.failed.add(line[0])
                end += len(raw)
        os.ftruncate(self._file, end)
        return end


def _finished_line(raw: bytes) -> tuple[int, bool] | None:
    """The input line of a whole record and whether it failed; None for anything else."""
    if not raw.endswith(b"\n"):
        return None
    try:
        record = json.loads(raw)
        line, error = record["line"], record["error"]
    except (ValueError, KeyError, TypeError):
        return None
    return (line, error is not None) if isinstance(line, int) else None
