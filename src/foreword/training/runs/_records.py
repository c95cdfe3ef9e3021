"""Prompts of a file, with whatever else a reward reads of them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword._errors import ParameterError
from foreword.training._gsm8k import find_gsm8k, read_gsm8k

GSM8K = "gsm8k:"
"""In front of a path: GSM8K's own files are read there."""

_TAKEN = frozenset(
    {"prompts", "completion", "completions", "completion_ids"}
    | {"trainer_state", "log_extra", "log_metric", "environments", "image", "images", "tools"}
)
"""Columns that TRL would take for its own."""


@dataclass(frozen=True)
class Prompts:
    """Records of a file, and what a run card says of it.

    Attributes:
        records: each with `prompt`; all have the same columns.
        lines: where each stands, from 1.
        path: the file.
        sha256: of its bytes.
        solved: whether demonstrations end as GSM8K's do.
    """

    records: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    path: str
    sha256: str
    solved: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """What records hold, `prompt` first."""
        return tuple(self.records[0])

    @property
    def chats(self) -> bool:
        """Whether prompts are lists of messages."""
        return not isinstance(self.records[0]["prompt"], str)

    def where(self, index: int) -> str:
        """How a message names a record."""
        return f"{Path(self.path).name} line {self.lines[index]}"

    def as_json(self, use: str) -> dict[str, Any]:
        """For the card."""
        said: dict[str, Any] = {"use": use, "path": self.path, "sha256": self.sha256}
        return {**said, "records": len(self.records), "columns": list(self.columns)}


def read_prompts(source: str, *, split: str = "train", demonstrations: bool = False) -> Prompts:
    """Read a .jsonl file, or GSM8K where `source` is `gsm8k:PATH`.

    A line is an object with `prompt`, a text or a list of messages {"role", "content"}, and any
    other columns, the same in every line. `split` matters for a directory of GSM8K alone.

    Args:
        demonstrations: every record needs a `demonstration`, a text.

    Raises:
        ParameterError: no such file, nothing in it, or a bad line, by its number.
    """
    if source.startswith(GSM8K):
        file = find_gsm8k(source[len(GSM8K) :], split)
        solved = read_gsm8k(file)
        lines = [n for n, line in enumerate(_text(file).split("\n"), 1) if line.strip()]
        return Prompts(tuple(dict(r) for r in solved), tuple(lines), str(file), _digest(file), True)
    file = Path(source)
    if file.is_dir():
        raise ParameterError(f"{source} is a directory: give a .jsonl file, or {GSM8K}{source}")
    found = list(_records(file.name, _text(file)))
    if not found:
        raise ParameterError(f"{source} holds no prompts")
    number, first = found[0]
    for line, record in found:
        _compare(f"{file.name} line {line}", record, number, first)
        if demonstrations and not _demonstrated(record):
            raise ParameterError(
                f"{file.name} line {line} has no demonstration: give a text, one in every line"
            )
    return Prompts(
        tuple(
            {key: record[key] for key in ("prompt", *(k for k in first if k != "prompt"))}
            for _, record in found
        ),
        tuple(line for line, _ in found),
        str(file),
        _digest(file),
    )


def draw_order(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` indices of `count` records: all of them in a drawn order, then all in another.

    The order of a whole run is one list, so that a run that is resumed goes on in it.
    """
    random_ = random.Random(seed)
    order: list[int] = []
    while len(order) < wanted:
        order += random_.sample(range(count), count)
    return order[:wanted]


def _records(name: str, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ParameterError(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise ParameterError(f"{where} is not a JSON object")
        if "prompt" not in record:
            held = ", ".join(sorted(record)) or "nothing"
            raise ParameterError(f"{where} has no prompt; it has {held}")
        _check_prompt(where, record["prompt"])
        taken = sorted(_TAKEN & record.keys())
        if taken:
            raise ParameterError(
                f"{where}: {taken[0]!r} is a name that TRL uses: call it otherwise"
            )
        yield number, record


def _check_prompt(where: str, prompt: Any) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise ParameterError(f"{where}: the prompt is empty")
        return
    if not isinstance(prompt, list) or not prompt:
        raise ParameterError(f"{where}: the prompt is no text and no list of messages")
    for message in prompt:
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(message.get("content"), str)
        ):
            raise ParameterError(f'{where}: a message is {{"role": "...", "content": "..."}}')


def _compare(where: str, record: dict[str, Any], number: int, first: dict[str, Any]) -> None:
    if record.keys() != first.keys():
        other = sorted(record.keys() ^ first.keys())[0]
        has = "has" if other in record else "lacks"
        raise ParameterError(f"{where} {has} {other!r}, unlike line {number}: give all the same")
    if isinstance(record["prompt"], str) != isinstance(first["prompt"], str):
        raise ParameterError(f"{where}: its prompt is of another kind than that of line {number}")


def _demonstrated(record: dict[str, Any]) -> bool:
    return isinstance(record.get("demonstration"), str) and bool(record["demonstration"])


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ParameterError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ParameterError(f"{str(file)!r} is not UTF-8 text: {error}") from error


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_columns(data: Prompts, other: Prompts) -> None:
    """Refuse evaluation data whose rewards could not be computed as those of the data.

    Raises:
        ParameterError: a column is missing, or prompts are of another kind.
    """
    missing: Sequence[str] = [
        name for name in data.columns if name not in other.columns and name != "demonstration"
    ]
    if missing:
        raise ParameterError(f"{other.path} has no column {missing[0]!r}, which {data.path} has")
    if data.chats != other.chats:
        raise ParameterError(f"{other.path} has prompts of another kind than {data.path}")
