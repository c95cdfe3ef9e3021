"""A language of assignments with a linter and an interpreter, for experiments about quality.

A task is an expression, `v0 op v1 op v2 ...`, from left to right, modulo 10. A program computes it
in assignments and returns the last:

    TASK 3 + 4 * 2 GO   a = 3 + 4 ; b = a * 2 ; RET b END

Every name has a snake and a camel spelling, every assignment a spaced and a tight sign, and there
may be assignments that nobody reads: three violations that leave the result as it is. A comment is
neither good nor bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

TASK, GO, END, RETURN, NEWLINE, SPACED, TIGHT, COMMENT = range(1, 9)
OPERATORS = (9, 10, 11)
"""Plus, minus, times."""
DIGITS = tuple(range(12, 22))
SNAKE = tuple(range(22, 30))
CAMEL = tuple(range(30, 38))
VOCAB = 38
KINDS = ("tight", "camel", "unused")

Task = tuple[int, ...]
"""Digits and operators in turn."""


def apply(operator: int, left: int, right: int) -> int:
    plus, minus, _ = OPERATORS
    value = (
        left + right if operator == plus else left - right if operator == minus else left * right
    )
    return value % 10


def value_of(task: Task) -> int:
    value = DIGITS.index(task[0])
    for operator, digit in zip(task[1::2], task[2::2], strict=True):
        value = apply(operator, value, DIGITS.index(digit))
    return value


def some_task(draw: Random) -> Task:
    task = [draw.choice(DIGITS)]
    for _ in range(draw.choice((2, 3))):
        task += [draw.choice(OPERATORS), draw.choice(DIGITS)]
    return tuple(task)


def prompt(task: Task) -> tuple[int, ...]:
    return (TASK, *task, GO)


def program(task: Task, draw: Random, rate: float = 0.5, unused: float = 0.3) -> tuple[int, ...]:
    """A right program for a task, violations drawn at these rates; ends with END."""
    ideas = draw.sample(range(len(SNAKE)), len(SNAKE))

    def name() -> int:
        return (CAMEL if draw.random() < rate else SNAKE)[ideas.pop()]

    def line(target: int, left: int, operator: int, right: int) -> list[int]:
        sign = TIGHT if draw.random() < rate else SPACED
        comment = [COMMENT] if draw.random() < 0.3 else []
        return [target, sign, left, operator, right, *comment, NEWLINE]

    written: list[int] = []
    last = task[0]
    for operator, digit in zip(task[1::2], task[2::2], strict=True):
        if draw.random() < unused:
            written += line(
                name(), draw.choice(DIGITS), draw.choice(OPERATORS), draw.choice(DIGITS)
            )
        target = name()
        written += line(target, last, operator, digit)
        last = target
    return (*written, RETURN, last, END)


@dataclass(frozen=True)
class Report:
    """What the linter and the interpreter say of a program.

    Attributes:
        statements: assignments.
        violations: of each kind.
        comments: lines with one.
        value: what it returns; None where it cannot be parsed or reads a name nobody set.
    """

    statements: int
    violations: dict[str, int]
    comments: int
    value: int | None

    @property
    def total(self) -> int:
        return sum(self.violations.values())


def check(tokens: Sequence[int]) -> Report:
    """Lint and run a program (without END). What cannot be parsed is linted as far as it can be."""
    found = dict.fromkeys(KINDS, 0)
    values: dict[int, int] = {}
    unread: set[int] = set()
    statements = comments = 0
    result: int | None = None
    broken = False

    def read(token: int) -> int | None:
        if token in DIGITS:
            return DIGITS.index(token)
        unread.discard(token)
        return values.get(token)

    for line in _lines(tokens):
        if line and line[-1] == COMMENT:
            comments += 1
            line = line[:-1]
        if len(line) == 2 and line[0] == RETURN and result is None:
            result = read(line[1])
            broken |= result is None
            continue
        well = (
            len(line) == 5
            and line[0] in (*SNAKE, *CAMEL)
            and line[1] in (SPACED, TIGHT)
            and line[3] in OPERATORS
        )
        if not well or result is not None:
            broken = True
            continue
        statements += 1
        found["tight"] += line[1] == TIGHT
        found["camel"] += line[0] in CAMEL
        left, right = read(line[2]), read(line[4])
        if left is None or right is None:
            broken = True
            continue
        found["unused"] += line[0] in unread  # written anew before anybody read it
        values[line[0]] = apply(line[3], left, right)
        unread.add(line[0])
    found["unused"] += len(unread)
    return Report(statements, found, comments, None if broken else result)


def _lines(tokens: Sequence[int]) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in tokens:
        if token == NEWLINE:
            lines.append([])
        else:
            lines[-1].append(token)
    return lines
