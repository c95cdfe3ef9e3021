"""Writing so that a file is there whole or not at all, whatever happens in between."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from foreword.serving.http._errors import ApiError

# EFBIG is what a limit on the size of files says (`ulimit -f`): to us it is a disk that is full.
_FULL = {errno.ENOSPC, errno.EFBIG, *([errno.EDQUOT] if hasattr(errno, "EDQUOT") else [])}


def write_whole(path: Path, data: bytes) -> None:
    """Put `data` at `path`, on the disk, in place of what was there; readable by the owner only.

    Raises:
        OSError: it could not be written; `path` is as it was.
    """
    draft = path.with_name(f"draft-{path.name}")
    try:
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(file, data)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    sync_directory(path.parent)


def write_all(file: int, data: bytes | memoryview) -> None:
    """Write every byte; a short write is gone on with.

    Raises:
        OSError: as `os.write`.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_directory(path: Path) -> None:
    """Wait until renames and removals in a directory are on the disk, where the system can."""
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no directories
        return
    try:
        os.fsync(file)
    except OSError:  # nor do some network file systems sync them
        pass
    finally:
        os.close(file)


def is_full(error: OSError) -> bool:
    """Whether there is no room: making some helps, trying again does not."""
    return error.errno in _FULL


def disk_error(error: OSError, what: str) -> ApiError:
    """What a caller hears of a disk that is full (507) or broken (500); no path is told."""
    if is_full(error):
        return ApiError(
            507,
            f"{what} could not be kept: the server's disk is full. Nothing of it was left behind; "
            "delete files you no longer need, or ask the operator to make room",
            code="disk_full",
            headers={"x-should-retry": "false"},
        )
    return ApiError(500, f"{what} could not be kept: the server's disk failed", code="disk_error")
