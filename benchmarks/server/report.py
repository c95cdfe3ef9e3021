"""The results of the server's trials as one page of the documentation.

    python -m benchmarks.server.report            # print it
    python -m benchmarks.server.report --write    # write docs/trials.md and the README's table

A test holds both to the result files, `benchmarks/results/server-NAME.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.lab import ROOT, cell
from experiments.report import conditions_line, markdown_table, with_block

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "trials.md"
README = ROOT / "README.md"
START, END = "<!-- server:start -->", "<!-- server:end -->"
ORDER = ("soak", "vanish", "fuzz", "faults", "timing", "peers", "peers-long")
ROWS = (
    ("soak", "crossed", "Ten minutes at twice its capacity"),
    ("soak", "first", "Ten minutes at twice its capacity"),
    ("vanish", "held", "1,000 clients that vanish"),
    ("fuzz", "wrong", "10,000 broken requests"),
    ("faults", "kill_lost", "Killed in the middle of a batch"),
    ("timing", "apart_area", "Two tenants, one prompt, 0.5 is a guess"),
    ("peers", "ratio", "Beside vLLM's CPU build, four system prompts of 1,024 tokens"),
    ("peers-long", "ratio", "Beside vLLM's CPU build, two system prompts of 4,096 tokens"),
)
"""What the README shows: a trial, one of its verdicts by name, and what it is called there."""
HEAD = """\
# Trials of the server

What `foreword serve` was put through, what was expected before, and what came out, "not met"
included. This page is made from the files `benchmarks/results/server-NAME.json` by
`python -m benchmarks.server.report --write`. Each trial runs again with
`python -m benchmarks.server.NAME`, all but the one with peers with `make trials`.
"""


def load_results() -> list[dict[str, Any]]:
    """The result files that are there, in the page's order."""
    paths = [RESULTS / f"server-{name}.json" for name in ORDER]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.is_file()]


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, ending in a newline."""
    return "\n".join([HEAD, *(line for result in results for line in section(result))])


def section(result: Mapping[str, Any]) -> Iterator[str]:
    """One trial's lines."""
    yield f"## {result['trial']}"
    yield ""
    yield f"{result['question'][0].upper()}{result['question'][1:]}"
    yield ""
    yield "| expected | measured | |"
    yield "|---|---:|---|"
    for verdict in result["verdicts"]:
        word = "met" if verdict["met"] else "**not met**"
        yield f"| {verdict['expected']} | {cell(verdict['value'])} | {word} |"
    for title, rows in _tables(result):
        yield ""
        yield f"### {result['trial']}: {title}"
        yield ""
        yield from markdown_table(rows)
    yield ""
    yield conditions_line(result)
    yield ""


def _tables(result: Mapping[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """The trial's facts that are tables: lists of objects of plain values."""
    for title, rows in result["facts"].items():
        if not isinstance(rows, list) or not 0 < len(rows) <= 20:
            continue
        if all(
            isinstance(row, dict)
            and row.keys() == rows[0].keys()
            and not any(isinstance(value, list | dict) for value in row.values())
            for row in rows
        ):
            yield title, rows


def readme_block(results: Sequence[Mapping[str, Any]]) -> str:
    """The README's table: a number or two of a trial, and how many expectations it met."""
    by_name = {result["trial"]: result for result in results}
    lines = ["| | measured | expected | met, of all |", "|---|---:|---|---:|"]
    for name, wanted, what in ROWS:
        if name in by_name:
            verdicts = by_name[name]["verdicts"]
            shown = next(v for v in verdicts if v["name"] == wanted)
            met = sum(v["met"] for v in verdicts)
            told, _, limits = shown["expected"].rpartition(": ")
            lines.append(
                f"| {what}: {told} | {cell(shown['value'])} | {limits} | {met} of {len(verdicts)} |"
            )
    return "\n".join((START, *lines, END))


def main() -> None:
    """Print the page, or write it and the README's table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    results = load_results()
    if not parser.parse_args().write:
        print(page(results))
        return
    PAGE.write_text(page(results), encoding="utf-8")
    text = README.read_text(encoding="utf-8")
    README.write_text(with_block(text, readme_block(results), START, END), encoding="utf-8")


if __name__ == "__main__":
    main()
