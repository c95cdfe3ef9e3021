"""What all experiments share: expectations that are declared first, verdicts printed as they are.

An experiment says what it expects before it measures anything; `measured` refuses what was not
declared and `finish` judges the median over the seeds. The result goes to a JSON file with its
conditions, "not reproduced" included.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from foreword.bench import conditions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "experiments" / "results"


@dataclass
class Expectation:
    """What an experiment expects of one number, and what came out.

    `at_most` and `at_least` are judged on the median over seeds; one of them, or both. With `every`
    each seed must keep to them: a median hides the one run that wrote something else.
    """

    name: str
    text: str
    at_least: float | None
    at_most: float | None
    every: bool = False
    values: list[float] = field(default_factory=list)

    @property
    def value(self) -> float | None:
        return median(self.values) if self.values else None

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        judged = self.values if self.every else [self.value]
        low = self.at_least is not None and min(judged) < self.at_least
        high = self.at_most is not None and max(judged) > self.at_most
        return "not reproduced" if low or high else "reproduced"

    @property
    def limits(self) -> str:
        parts = []
        if self.at_least is not None:
            parts.append(f">= {self.at_least:g}")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:g}")
        return " and ".join(parts) + (" for every seed" if self.every else "")


class Experiment:
    """One claim under test.

    Reads `--out FILE` and `--quick` from the command line; `quick` is for the experiment to
    honour (smaller, and its result is not written unless `--out` says where).

    Args:
        name: the result file's name.
        paper: where the claim is made.
        claim: the claim in a sentence.
        seeds: what randomness there is starts from these.
    """

    def __init__(
        self,
        name: str,
        *,
        paper: str,
        claim: str,
        seeds: Sequence[int] = (0,),
        arguments: Sequence[str] | None = None,
    ) -> None:
        parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}", description=claim)
        parser.add_argument("--out", type=Path, help="file for the result")
        parser.add_argument("--quick", action="store_true", help="a smaller run, for a try")
        given = parser.parse_args(arguments)
        self.name = name
        self.paper = paper
        self.claim = claim
        self.quick: bool = given.quick
        self.seeds = tuple(seeds)[:1] if self.quick else tuple(seeds)
        self._out: Path | None = given.out
        self._expected: dict[str, Expectation] = {}
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._facts: dict[str, Any] = {}
        self._started = time.perf_counter()
        self._measuring = False
        print(f"{name} ({paper})\nclaim: {claim}\n")

    def expect(
        self,
        name: str,
        text: str,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        between: tuple[float, float] | None = None,
        every: bool = False,
    ) -> None:
        """Declare what a number should be; only before the first measurement.

        `every`: for each seed, not only for the median.
        """
        if self._measuring:
            raise RuntimeError(f"expectation {name!r} comes after a measurement")
        if between is not None:
            at_least, at_most = between
        if at_least is None and at_most is None:
            raise ValueError(f"expectation {name!r} has no limit, so it cannot fail")
        if name in self._expected:
            raise ValueError(f"expectation {name!r} is declared twice")
        self._expected[name] = Expectation(name, text, at_least, at_most, every)
        print(f"expected: {text}: {self._expected[name].limits}")

    def measured(self, name: str, values: float | Sequence[float]) -> None:
        """What came out: one value per seed, or one."""
        if name not in self._expected:
            raise KeyError(f"{name!r} was measured but not declared by `expect`")
        self._measuring = True
        many = [values] if isinstance(values, int | float) else list(values)
        self._expected[name].values += [float(value) for value in many]

    def table(self, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows and keep them in the result."""
        self._measuring = True
        self._tables[title] = [dict(row) for row in rows]
        print(f"\n{title}")
        for line in table_lines(rows):
            print(line)

    def fact(self, name: str, value: Any) -> None:
        """Keep something else worth knowing: a setting, a size, a seed's outcome."""
        self._facts[name] = value

    def finish(self) -> bool:
        """Print the verdicts and write the result; True if all was reproduced."""
        print()
        verdicts = [e.verdict for e in self._expected.values()]
        for expectation, verdict in zip(self._expected.values(), verdicts, strict=True):
            value = expectation.value
            shown = "nothing" if value is None else f"{value:.4g}"
            print(f"{verdict}: {expectation.text}: {shown} (expected {expectation.limits})")
        result = self._result()
        path = self._out
        if path is None and not self.quick:
            RESULTS.mkdir(parents=True, exist_ok=True)
            path = RESULTS / f"{self.name}.json"
        if path is not None:
            text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}", file=sys.stderr)
        return set(verdicts) <= {"reproduced"}

    def _result(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "paper": self.paper,
            "claim": self.claim,
            "seeds": list(self.seeds),
            "quick": self.quick,
            "verdicts": [
                {
                    "name": e.name,
                    "expected": f"{e.text}: {e.limits}",
                    "median": e.value,
                    "values": e.values,
                    "verdict": e.verdict,
                }
                for e in self._expected.values()
            ],
            "facts": self._facts,
            "tables": self._tables,
            "seconds": round(time.perf_counter() - self._started, 1),
            "conditions": conditions(),
        }


def data_file(path: str) -> Path:
    """A file of the public data: below FOREWORD_DATA, or `../shared/data` beside the clone.

    Ends the program with the reason where it is absent.
    """
    base = Path(os.environ.get("FOREWORD_DATA", ROOT.parent / "shared" / "data"))
    found = base / path
    if not found.exists():
        sys.exit(f"no {path} below {base}: set FOREWORD_DATA to where the public data lies")
    return found


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows of equal keys as aligned text: first column to the left, the others to the right."""
    if not rows:
        return []
    header = list(rows[0])
    cells = [header, *([cell(row.get(name)) for name in header] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
