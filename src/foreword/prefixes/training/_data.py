"""From files to examples: JSON lines with one record each, or plain text cut into windows.

    {"text": "..."}                                        learn all of it
    {"prompt": "...", "completion": "..."}                 learn the completion
    {"prompt": "...", "chosen": "...", "rejected": "..."}  a pair, for methods that compare

Any of them may have `"attributes": {"style": "formal"}` and `"private"`: a list of texts, or of
[begin, end] places in the characters of prompt and completion together.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.prefixes.methods import Example
from foreword.prefixes.training._errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from foreword.models import Tokenizer

_KINDS = ({"text"}, {"prompt", "completion"}, {"prompt", "chosen", "rejected"})
_MORE = {"attributes", "private", "id"}


@dataclass(frozen=True)
class Data:
    """Examples of a file, and what a run card says of it.

    Attributes:
        examples: in the file's order; `fields["record"]` says where each stood.
        path: the file.
        sha256: of its bytes.
    """

    examples: tuple[Example, ...]
    path: str
    sha256: str

    @property
    def tokens(self) -> int:
        """Token ids of all examples; rejected completions are not counted."""
        return sum(len(example.ids) for example in self.examples)


def read_examples(
    path: str | PathLike[str], tokenizer: Tokenizer, *, window: int = 128, end: bool = True
) -> Data:
    """Read `.jsonl` or `.txt`.

    Prompts are encoded as the engine encodes them, completions without special tokens; the two are
    encoded apart, so that the line between them is exact.

    Args:
        path: the file, UTF-8.
        tokenizer: the model's.
        window: tokens of each piece that plain text is cut into; the last may be shorter.
        end: put the tokenizer's end token behind texts and completions, so that stopping is learned
            too. Windows of plain text get none.

    Raises:
        TrainingError: no such file, not UTF-8, nothing in it, or a bad record, with its line.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
        text = raw.decode()
    except OSError as error:
        raise TrainingError(f"cannot read {str(file)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{str(file)!r} is not UTF-8 text: {error}") from error
    if file.suffix in (".jsonl", ".json", ".ndjson"):
        made = list(_records(file.name, text, tokenizer, end))
    elif window < 2:
        raise TrainingError(f"window is {window}: a piece of text has at least 2 tokens")
    else:
        ids = tokenizer.encode(text)
        pieces = [tuple(ids[at : at + window]) for at in range(0, len(ids), window)]
        made = [
            Example(piece, fields={"record": f"{file.name} window {number}"})
            for number, piece in enumerate(pieces, 1)
            if len(piece) > 1
        ]
    if not made:
        raise TrainingError(f"{str(file)!r} holds nothing to train on")
    return Data(tuple(made), str(file), hashlib.sha256(raw).hexdigest())


def split(
    examples: Sequence[Example], share: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples to learn from and, drawn by `seed`, a share to be judged by. Order is kept.

    Raises:
        TrainingError: a share outside [0, 1), or nothing left to learn from.
    """
    if not 0 <= share < 1:
        raise TrainingError(f"the share of dev examples is {share}: give 0 or more, less than 1")
    count = max(1, round(share * len(examples))) if share else 0
    if count >= len(examples):
        raise TrainingError(
            f"{len(examples)} examples cannot give {count} to dev: give a file of dev examples"
        )
    held = set(random.Random(seed).sample(range(len(examples)), count))
    return (
        [example for at, example in enumerate(examples) if at not in held],
        [example for at, example in enumerate(examples) if at in held],
    )


def truncate(examples: Sequence[Example], room: int) -> list[Example]:
    """Examples of at most `room` tokens: prompts lose their beginning first, then completions
    their end.

    Raises:
        TrainingError: room for less than two tokens.
    """
    if room < 2:
        raise TrainingError(f"{room} tokens fit behind the prefix: nothing can be learned in them")
    return [_cut(example, room) for example in examples]


def _cut(example: Example, room: int) -> Example:
    rejected = tuple(example.fields.get("rejected", ()))
    over = max(len(example.ids), len(rejected)) - room
    if over <= 0:
        return example
    drop = max(0, min(over, example.prompt - 1))
    begin, stop = drop, drop + room
    fields: dict[str, Any] = dict(example.fields)
    for key in ("rejected", "private"):
        if key in fields:
            fields[key] = tuple(fields[key])[begin:stop]
    return replace(
        example, ids=example.ids[begin:stop], prompt=example.prompt - drop, fields=fields
    )


def _records(name: str, text: str, tokenizer: Tokenizer, end: bool) -> Iterator[Example]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TrainingError(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TrainingError(f"{where} is not a JSON object")
        yield _example(where, record, tokenizer, end)


def _example(where: str, record: dict[str, Any], tokenizer: Tokenizer, end: bool) -> Example:
    keys = record.keys() - _MORE
    if not any(keys == kind for kind in _KINDS):
        raise TrainingError(
            f"{where} has {', '.join(sorted(record)) or 'no keys'}: give text; prompt and "
            "completion; or prompt, chosen and rejected"
        )
    for key in keys:
        if not isinstance(record[key], str):
            raise TrainingError(f"{where}: {key} is not a text")
    prompt = record.get("prompt", "")
    answer: str = record.get("text", record.get("completion", record.get("chosen", "")))
    fields: dict[str, Any] = {"record": where}
    if "attributes" in record:
        fields["attributes"] = _attributes(where, record["attributes"])
    head = tokenizer.encode(prompt) if "prompt" in record else []
    tail = [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
    body = tokenizer.encode(answer) if "text" in record else _bare(tokenizer, answer)
    if "rejected" in record:
        fields["rejected"] = (*head, *_bare(tokenizer, record["rejected"]), *tail)
    if "private" in record:
        marked = _private(where, record["private"], prompt + answer)
        kept = _marks(tokenizer, prompt, marked, 0, "prompt" in record, len(head))
        kept += _marks(tokenizer, answer, marked, len(prompt), "text" in record, len(body))
        fields["private"] = (*kept, *[False] * len(tail))
    ids = (*head, *body, *tail)
    if len(ids) < 2 or not body:
        raise TrainingError(f"{where} has nothing to learn: its text is empty or one token")
    return Example(ids, len(head), fields)


def _bare(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.inner(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _attributes(where: str, given: Any) -> dict[str, str]:
    if not isinstance(given, dict) or not all(isinstance(each, str) for each in given.values()):
        raise TrainingError(f'{where}: attributes are {{"name": "value"}}, all of them texts')
    return dict(given)


def _private(where: str, given: Any, text: str) -> list[tuple[int, int]]:
    """The private stretches of `text`, in characters."""
    wrong = TrainingError(
        f"{where}: private is a list of texts, or of [begin, end] places in {len(text)} characters"
    )
    if not isinstance(given, list):
        raise wrong
    spans: list[tuple[int, int]] = []
    for each in given:
        if isinstance(each, str) and each:
            found = list(_all(text, each))
            if not found:
                raise TrainingError(f"{where}: the private text {each!r} is not in it")
            spans += found
        elif (
            isinstance(each, list)
            and len(each) == 2
            and all(isinstance(place, int) for place in each)
            and 0 <= each[0] < each[1] <= len(text)
        ):
            spans.append((each[0], each[1]))
        else:
            raise wrong
    return spans


def _all(text: str, part: str) -> Iterator[tuple[int, int]]:
    at = text.find(part)
    while at >= 0:
        yield at, at + len(part)
        at = text.find(part, at + 1)


def _marks(
    tokenizer: Tokenizer,
    text: str,
    spans: Sequence[tuple[int, int]],
    shift: int,
    special: bool,
    count: int,
) -> list[bool]:
    """Whether each token of `text` overlaps one of `spans`, which count from `shift` before it."""
    if not count:
        return []
    try:
        places: Mapping[str, Any] = tokenizer.inner(
            text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
    except NotImplementedError as error:
        raise TrainingError(
            "private texts need a fast tokenizer (tokenizer.json), which says where tokens stand"
        ) from error
    return [
        any(begin + shift < stop and end + shift > start for start, stop in spans) and begin < end
        for begin, end in places["offset_mapping"]
    ]
