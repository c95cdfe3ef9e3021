"""A language of assignments with a linter and an interpreter, for experiments about quality.

A task is a digit and two steps, each an operator with a digit, modulo 10. A program takes the steps
in assignments, and the last value is the result:

    TASK 3 +4 *2 GO   z = #7 ; a = 3 +4 ; b = a *2 ; END

Every name has a snake and a camel spelling, every assignment a spaced and a tight sign, and there
may be constants that nobody reads, in front: three violations that leave the result as it is. A
comment is neither good nor bad. First and second steps, their names, and constants each have tokens
of their own, so a very small model learns to write programs in a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

TASK, GO, END, NEWLINE, SPACED, TIGHT, COMMENT = range(1, 8)
DIGITS = tuple(range(10, 20))
CONSTANTS = tuple(range(20, 30))
FIRST, SECOND = tuple(range(30, 60)), tuple(range(60, 90))
"""Plus 0 to 9, minus 0 to 9, times 0 to 9."""
STEPS = (*FIRST, *SECOND)
SNAKE, CAMEL = tuple(range(90, 99)), tuple(range(99, 108))
"""Three names each for constants, first and second steps."""
VOCAB = 108
KINDS = ("tight", "camel", "unused")

Task = tuple[int, int, int]
"""A digit and two steps."""


def step(value: int, token: int) -> int:
    operator, digit = divmod(STEPS.index(token) % 30, 10)
    return (value + digit, value - digit, value * digit)[operator] % 10


def value_of(task: Task) -> int:
    return step(step(DIGITS.index(task[0]), task[1]), task[2])


def some_task(draw: Random) -> Task:
    return draw.choice(DIGITS), draw.choice(FIRST), draw.choice(SECOND)


def prompt(task: Task) -> tuple[int, ...]:
    return (TASK, *task, GO)


def program(task: Task, draw: Random, rate: float = 0.5, unused: float = 0.4) -> tuple[int, ...]:
    """A right program for a task, violations drawn at these rates; ends with END."""
    constants = draw.sample(range(3), 3)

    def name(idea: int) -> int:
        return (CAMEL if draw.random() < rate else SNAKE)[idea]

    def line(target: int, *right: int) -> list[int]:
        sign = TIGHT if draw.random() < rate else SPACED
        comment = [COMMENT] if draw.random() < 0.3 else []
        return [target, sign, *right, *comment, NEWLINE]

    written: list[int] = []
    for _ in range(2):
        if draw.random() < unused:
            written += line(name(constants.pop()), draw.choice(CONSTANTS))
    last = task[0]
    for number, each in enumerate(task[1:], start=1):
        target = name(3 * number + draw.randrange(3))
        written += line(target, last, each)
        last = target
    return (*written, END)


@dataclass(frozen=True)
class Report:
    """What the linter and the interpreter say of a program.

    Attributes:
        statements: assignments.
        violations: of each kind.
        comments: lines with one.
        value: of its last assignment; None where it cannot be parsed or reads a name nobody set.
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
    statements = comments = last = 0
    result: int | None = None
    broken = False

    def read(token: int) -> int | None:
        if token in DIGITS:
            return DIGITS.index(token)
        if token in CONSTANTS:
            return CONSTANTS.index(token)
        unread.discard(token)
        return values.get(token)

    for line in _lines(tokens):
        if line and line[-1] == COMMENT:
            comments += 1
            line = line[:-1]
        well = (
            len(line) in (3, 4)
            and line[0] in (*SNAKE, *CAMEL)
            and line[1] in (SPACED, TIGHT)
            and all(token in STEPS for token in line[3:])
        )
        if not well:
            broken |= bool(line)
            continue
        statements += 1
        found["tight"] += line[1] == TIGHT
        found["camel"] += line[0] in CAMEL
        value = read(line[2])
        if value is None:
            broken = True
            continue
        found["unused"] += line[0] in unread  # written anew before anybody read it
        for token in line[3:]:
            value = step(value, token)
        result = values[line[0]] = value
        unread.add(line[0])
        last = line[0]
    found["unused"] += len(unread - {last})
    return Report(statements, found, comments, None if broken else result)


def _lines(tokens: Sequence[int]) -> list[list[int]]:
    lines: list[list[int]] = [[]]
    for token in tokens:
        if token == NEWLINE:
            lines.append([])
        else:
            lines[-1].append(token)
    return lines
