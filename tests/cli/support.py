"""Reading and writing lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_lines(path: Path, *lines: object) -> Path:
    """A .jsonl file; texts are written as they are, everything else as JSON."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
