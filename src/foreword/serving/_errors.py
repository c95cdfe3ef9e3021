"""What serving raises."""

from __future__ import annotations

from foreword._errors import ForewordError


class BatchFileError(ForewordError):
    """A batch input that cannot be read, or an output file that must not or cannot be written."""


class LineError(ForewordError, ValueError):
    """One line of a batch file that cannot be run; the other lines are none the worse for it.

    Attributes:
        code: a short name for programs, such as `"invalid_json"`.
        line: the line's number in the file, from 1.
        custom_id: the line's own id, where it could be read.
    """

    def __init__(self, code: str, message: str, *, line: int, custom_id: str | None = None) -> None:
        super().__init__(f"line {line}: {message}")
        self.code = code
        self.line = line
        self.custom_id = custom_id
