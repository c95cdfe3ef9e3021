"""GSM8K (arXiv 2110.14168): word problems whose solutions end in a number behind ####."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from foreword._errors import ParameterError

MARKER = "####"
TEMPLATE = "Question: {question}\nReason step by step and end with #### and the number.\nAnswer:"
SPLITS = ("train", "test")
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def read_gsm8k(
    path: str | PathLike[str], split: str = "train", *, template: str = TEMPLATE
) -> list[dict[str, str]]:
    """The problems of a split, as records for GRPO and Prefix-RFT.

    Each has `prompt` (the question in `template`), `answer` (the final number without commas, such
    as `"1200"`) and `demonstration`: a blank, the written solution without the calculator's
    `<<...>>`, and a last line `#### 1200`.

    Args:
        path: a directory that holds `gsm8k_train.jsonl` or `train.jsonl` (test likewise), or such a
            file, as the data set's authors publish them: {"question", "answer"} per line.
        split: `train` or `test`; of no meaning for a file.
        template: what a prompt looks like, with `{question}` in it.

    Raises:
        ParameterError: no such split, file or placeholder, or a line that is no problem, by number.
    """
    if split not in SPLITS:
        raise ParameterError(f"GSM8K has no split {split!r}: there are {' and '.join(SPLITS)}")
    if "{question}" not in template:
        raise ParameterError(f"the template {template!r} has no place for {{question}}")
    file = find_gsm8k(path, split)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"cannot read {file}: {error}") from error
    records = list(_records(file.name, text, template))
    if not records:
        raise ParameterError(f"{file} holds no problems")
    return records


def find_gsm8k(path: str | PathLike[str], split: str) -> Path:
    """The file of a split: in a directory, or `path` itself.

    Raises:
        ParameterError: there is none; the names that were looked for are said.
    """
    place = Path(path)
    if place.is_file():
        return place
    names = (f"gsm8k_{split}.jsonl", f"{split}.jsonl")
    for name in names:
        if (place / name).is_file():
            return place / name
    raise ParameterError(f"no GSM8K at {str(place)!r}: looked there for {' and '.join(names)}")


def _records(name: str, text: str, template: str) -> Iterator[dict[str, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            given = json.loads(line)
            question, solution = given["question"], given["answer"]
        except (ValueError, KeyError, TypeError) as error:
            raise ParameterError(
                f'{where} is no problem of GSM8K: give {{"question", "answer"}}'
            ) from error
        if not isinstance(question, str) or not isinstance(solution, str):
            raise ParameterError(f"{where}: question and answer are texts")
        steps, found, final = solution.rpartition(MARKER)
        answer = final.strip().replace(",", "")
        if not found or not answer:
            raise ParameterError(f"{where}: the answer does not end in {MARKER} and a number")
        steps = _ANNOTATION.sub("", steps).strip()
        yield {
            "prompt": template.replace("{question}", question.strip()),
            "answer": answer,
            "demonstration": f" {steps}\n{MARKER} {answer}",
        }
