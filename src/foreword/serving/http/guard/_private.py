"""Files that hold secrets: read whole, with a warning where others can read them too."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from foreword._errors import ParameterError

_log = logging.getLogger(__name__)


def read_private(path: str | os.PathLike[str], what: str) -> bytes:
    """The bytes of a file that should be its owner's alone. What it holds is never logged.

    Args:
        what: what the file is to people, for messages: "the file of API keys".

    Raises:
        ParameterError: it cannot be read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read()
    except OSError as error:
        raise ParameterError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    if os.name == "posix" and mode & 0o077:
        _log.warning(
            "%s %s can be read or changed by other users of this machine: chmod 600 it", what, path
        )
    return data
