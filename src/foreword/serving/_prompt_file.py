"""Prompt files for people: one prompt per line of text, or the lines of a batch file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TextIO

from foreword.serving._batch_lines import BatchLine, read_lines
from foreword.serving._errors import BatchFileError, LineError


def read_prompt_file(path: Path) -> list[BatchLine]:
    """The requests of a prompt file.

    `.jsonl` (or `.ndjson`) is read as a batch file; anything else is text with one prompt per line,
    blank lines left out. A prompt that itself has several lines goes into a `.jsonl` file.

    Raises:
        LineError: a line is no request.
        BatchFileError: the file cannot be read or holds no prompt.
    """
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        found = []
        for line in read_lines(path):
            if isinstance(line, LineError):
                raise line
            found.append(line)
    else:
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise BatchFileError(f"cannot read {path}: {reason}") from error
        found = text_prompts(io.StringIO(text))
    if not found:
        raise BatchFileError(f"{path} holds no prompt: write one per line")
    return found


def text_prompts(lines: TextIO) -> list[BatchLine]:
    """The prompts of a text, one per line; blank lines are left out."""
    prompts = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, start=1))
    return [
        BatchLine(number, None, "completion", prompt, {}, True)
        for number, prompt in prompts
        if prompt.strip()
    ]
