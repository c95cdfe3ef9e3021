"""The directory of a run: looked at before anything is trained, written whole or not."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foreword.training._errors import SharingError

IDENTITY = "run.json"
METRICS = "metrics.jsonl"
CARD = "card.json"
_WRITTEN = ("model", "adapter", "README.md", METRICS)


def checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first: the trainer's state is written last."""
    found = []
    for path in directory.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and (path / "trainer_state.json").is_file():
            found.append((int(match.group(1)), path))
    return [path for _, path in sorted(found)]


def check_out(directory: Path, resume: bool) -> Path | None:
    """Refuse a directory that cannot be used; find the checkpoint to go on from. Writes nothing.

    Raises:
        SharingError: it holds a run and `resume` is false, a finished one, or something else that
            would be replaced; or it is no directory that can be written to.
    """
    if (directory / CARD).exists():
        raise SharingError(f"{directory} holds a finished run: take another directory")
    found = checkpoints(directory)
    if found and not resume:
        raise SharingError(
            f"{directory} holds a run already: go on with it (resume), or take another directory"
        )
    if not (directory / IDENTITY).exists():
        for name in _WRITTEN:
            if (directory / name).exists():
                raise SharingError(
                    f"{directory} holds {name}, which is of no run and would be replaced: take "
                    "another directory"
                )
    there = directory
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise SharingError(f"cannot make the directory {str(directory)!r}: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise SharingError(f"cannot write to {there}: take another directory")
    return found[-1] if found else None


def check_identity(directory: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was asked for otherwise.

    Raises:
        SharingError: naming what differs.
    """
    file = directory / IDENTITY
    try:
        theirs = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SharingError(
            f"cannot read {file}, which says what the run was: {error}; take another directory"
        ) from error
    for name, now in _flat(json.loads(json.dumps(identity))).items():
        was = _flat(theirs).get(name)
        if was != now:
            raise SharingError(
                f"{directory} belongs to a run with another {name} ({_short(was)}; now "
                f"{_short(now)}): take the same, or another directory"
            )


def make_out(directory: Path) -> None:
    """Make the directory of a run.

    Raises:
        SharingError: it cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SharingError(
            f"cannot make the directory {str(directory)!r}: {error.strerror}; take another "
            "directory"
        ) from error


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which is at `path` only when it is whole."""
    draft = path.with_name(f"{path.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        shutil.rmtree(path, ignore_errors=True)
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file by `text`."""
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by JSON; numbers that are not finite are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The leaves of nested objects and lists, by their dotted names."""
    if isinstance(value, list):
        value = {"number": len(value)} | {str(i): each for i, each in enumerate(value)}
    if not isinstance(value, dict):
        return {name: value}
    made: dict[str, Any] = {}
    for key, each in value.items():
        made |= _flat(each, f"{name}.{key}" if name else key)
    return made


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
