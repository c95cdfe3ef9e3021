"""Small reward functions in the shape that TRL's trainers call, to use or to copy.

A reward function is called with one list per column of the data and one of completions, and returns
a number for each completion:

    def shorter_is_better(completions, **columns):
        return [-len(completion) / 1000 for completion in completions]

`columns` has `prompts`, `completion_ids` (token ids) and every other column of the data, such as
`answer`, each as long as `completions`; a completion is a text, or a list of messages where the
prompt was one. What is not used goes into `**columns`. None in place of a number leaves that
completion out of this function's mean. Everything here is pure and knows no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias

from foreword._errors import ParameterError

__all__ = ["RewardFunction", "exact_answer", "format_reward", "length_penalty", "text_of"]

RewardFunction: TypeAlias = Callable[..., list[float]]

_NUMBER = re.compile(
    r"[-+\u2212]?\s*[$\u20ac\u00a3]?\s*[-+\u2212]?(?:\d[\d,]*\.?\d*|\.\d+)"
    r"(?![\d/^*:]|[.,]\d|[eE][-+]?\d)"  # a fraction, power, ratio or date is not its first number
)


def exact_answer(answer_column: str = "answer", marker: str = "####") -> RewardFunction:
    """1 for a completion whose answer is the data's, else 0.

    The answer is what follows the last `marker`, to the end of its line. If both it and the data's
    begin with a number, those are compared as decimal numbers: `$1,200.` is 1200 and 3.50 is 3.5.
    Otherwise the texts are compared, without the blanks around them. A completion without the
    marker has no answer. A data's answer that holds the marker is read behind it too.

    Args:
        answer_column: the column of the data that holds the answer, a text or a number.
        marker: what stands in front of an answer.

    Raises:
        ParameterError: the marker is empty.
    """
    if not marker:
        raise ParameterError("the marker in front of an answer is empty: give one, such as '####'")

    def exact_answer(completions: Sequence[Any], **columns: Any) -> list[float]:
        wanted = _column(columns, answer_column, "exact_answer")
        return [
            float(_same(_behind(text_of(completion), marker), str(answer), marker))
            for completion, answer in zip(completions, wanted, strict=True)
        ]

    return exact_answer


def format_reward(pattern: str) -> RewardFunction:
    """1 for a completion that has the form of `pattern`, a regular expression, from its first
    character to its last (`.` stands for line breaks too), else 0.

    Raises:
        ParameterError: not a regular expression.
    """
    try:
        form = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ParameterError(f"{pattern!r} is not a regular expression: {error}") from error

    def format_reward(completions: Sequence[Any], **columns: Any) -> list[float]:
        return [float(form.fullmatch(text_of(each)) is not None) for each in completions]

    return format_reward


def length_penalty(limit: int, scale: float = 1.0) -> RewardFunction:
    """0 for a completion of at most `limit` tokens, then less by `scale` per `limit` tokens more.

    Raises:
        ParameterError: `limit` is below 1, or `scale` is not positive.
    """
    if limit < 1 or not scale > 0:
        raise ParameterError(
            f"a limit of {limit} tokens, scale {scale}: give 1 token or more and a scale above 0"
        )

    def length_penalty(
        completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], **columns: Any
    ) -> list[float]:
        return [-scale * max(0, len(ids) - limit) / limit for ids in completion_ids]

    return length_penalty


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the contents of its messages one behind the other."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def _column(columns: dict[str, Any], name: str, who: str) -> Sequence[Any]:
    if name not in columns:
        known = ", ".join(sorted(columns)) or "none"
        raise ParameterError(
            f"{who} reads the column {name!r}, which the data lacks; it has {known}"
        )
    value: Sequence[Any] = columns[name]
    return value


def _behind(text: str, marker: str) -> str | None:
    """What follows the last `marker` on its line; None without one."""
    _, found, rest = text.rpartition(marker)
    if not found:
        return None
    lines = rest.strip().splitlines()
    return lines[0].strip() if lines else ""


def _same(given: str | None, wanted: str, marker: str) -> bool:
    if not given:
        return False
    truth = _behind(wanted, marker)
    truth = wanted.strip() if truth is None else truth
    a, b = _number(given), _number(truth)
    return given == truth if a is None or b is None else a == b


def _number(text: str) -> Decimal | None:
    """The number that `text` begins with."""
    found = _NUMBER.match(text)
    if found is None:
        return None
    digits = re.sub(r"[^\d.\-\u2212]", "", found.group()).replace("\u2212", "-").rstrip(".")
    try:
        return Decimal(digits)
    except InvalidOperation:  # two signs
        return None
