"""What all trials share: expectations that are declared first, and verdicts kept as they come out.

A trial says what it expects before it measures anything. The result goes to a JSON file with its
conditions, expectations that were not met included.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lab import table_lines
from foreword.bench import conditions


@dataclass
class Expectation:
    """What is expected of one number, and what came out. One of the limits, or both."""

    text: str
    at_least: float | None
    at_most: float | None
    value: float | None = None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        low = self.at_least is not None and self.value < self.at_least
        high = self.at_most is not None and self.value > self.at_most
        return not low and not high

    @property
    def limits(self) -> str:
        low = [] if self.at_least is None else [f">= {self.at_least:g}"]
        high = [] if self.at_most is None else [f"<= {self.at_most:g}"]
        if self.at_least is not None and self.at_least == self.at_most:
            return f"{self.at_least:g}"
        return " and ".join(low + high)


class Trial:
    """One trial. `parser` has `--out FILE` and `--quick` already.

    Args:
        name: what results call it.
        question: what it finds out, in a sentence.
    """

    def __init__(self, name: str, question: str) -> None:
        self.name = name
        self.question = question
        self.parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.server.{name}", description=question
        )
        self.parser.add_argument("--out", type=Path, help="file for the result")
        self.parser.add_argument("--quick", action="store_true", help="a smaller run, for a try")
        self._expected: dict[str, Expectation] = {}
        self._facts: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._options: dict[str, Any] = {}

    def options(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The command line, read; it stands in the result."""
        given = self.parser.parse_args(arguments)
        self._options = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(given).items()
            if name != "out"
        }
        self._out: Path | None = given.out
        print(f"{self.name}: {self.question}\n", flush=True)
        return given

    def expect(
        self,
        name: str,
        text: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        exactly: float | None = None,
    ) -> None:
        """Declare what a number should be, before it is measured."""
        if exactly is not None:
            at_least = at_most = exactly
        if at_least is None and at_most is None:
            raise ValueError(f"expectation {name!r} has no limit, so it cannot fail")
        if name in self._expected or any(e.value is not None for e in self._expected.values()):
            raise RuntimeError(f"expectation {name!r} is declared twice, or after a measurement")
        self._expected[name] = Expectation(text, at_least, at_most)
        print(f"expected: {text}: {self._expected[name].limits}", flush=True)

    def measured(self, name: str, value: float | None) -> None:
        """What came out; None is a number that could not be had, and never what was expected."""
        self._expected[name].value = None if value is None else float(value)

    def fact(self, name: str, value: Any) -> None:
        """Keep something else worth knowing."""
        self._facts[name] = value

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows and keep them."""
        self._facts[title] = [dict(row) for row in rows]
        print("\n".join(["", title, *table_lines(rows)]), flush=True)

    def say(self, text: str) -> None:
        """Tell how far it is."""
        print(f"[{time.perf_counter() - self._started:6.1f} s] {text}", file=sys.stderr, flush=True)

    def finish(self) -> int:
        """Print the verdicts, write the result; the exit code, 0 if everything was as expected."""
        print()
        for each in self._expected.values():
            value = "nothing" if each.value is None else f"{each.value:.4g}"
            verdict = "met" if each.met else "NOT MET"
            print(f"{verdict}: {each.text}: {value} (expected {each.limits})")
        if self._out is not None:
            text = json.dumps(self._result(), indent=1, ensure_ascii=False) + "\n"
            self._out.write_text(text, encoding="utf-8")
            print(f"wrote {self._out}", file=sys.stderr)
        return 0 if all(each.met for each in self._expected.values()) else 1

    def _result(self) -> dict[str, Any]:
        return {
            "trial": self.name,
            "question": self.question,
            "options": self._options,
            "verdicts": [
                {
                    "name": name,
                    "expected": f"{each.text}: {each.limits}",
                    "value": each.value,
                    "met": each.met,
                }
                for name, each in self._expected.items()
            ],
            "facts": self._facts,
            "seconds": round(time.perf_counter() - self._started, 1),
            "conditions": conditions(),
        }
