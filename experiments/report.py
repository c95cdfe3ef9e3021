"""The results of all experiments as one page of the documentation.

    python -m experiments.report            # print it
    python -m experiments.report --write    # write docs/experiments.md and the README's table

A test holds both to the result files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lab import RESULTS, ROOT, cell

SHOWN = 2
"""Tables of an experiment that the page shows; the others are in its result file."""

PAGE = ROOT / "docs" / "experiments.md"
README = ROOT / "README.md"
START, END = "<!-- experiments:start -->", "<!-- experiments:end -->"
ROWS = {
    (
        "batchllm_mooncake",
        "gain",
    ): "BatchLLM's plan, Mooncake's conversations",
    ("batchllm_bbh", "gain"): "BatchLLM's plan on the engine, BIG-Bench Hard",
    ("blendserve", "speed-up"): "BlendServe, simulated A100",
    ("blendserve_engine", "gain"): "BlendServe on the engine",
    ("dlpm", "local"): "DLPM, simulated",
    ("dlpm", "bound"): "DLPM, fairness, simulated",
    ("d2lpm", "round-robin"): "D²LPM, simulated",
    ("d2lpm", "affinity"): "D²LPM, simulated",
    ("simulator_check", "time"): "the simulator itself, beside the engine",
}
"""What the README shows: an experiment's verdict by name, and how it is called there."""
HEAD = """\
# Experiments

What was claimed, what we expected before we measured, and what came out, "not reproduced"
included. This page is made from the result files in `experiments/results` by
`python -m experiments.report --write`. Each experiment runs again with
`python -m experiments.NAME`, in minutes; those that need public data take it from `FOREWORD_DATA`.
"""


def page(results: Sequence[Mapping[str, Any]]) -> str:
    """The whole page, ending in a newline."""
    return "\n".join([HEAD, *(line for result in results for line in section(result))])


def section(result: Mapping[str, Any]) -> Iterator[str]:
    """One experiment's lines."""
    yield f"## {result['experiment']}"
    yield ""
    yield f"Claim ({result['paper']}): {result['claim']}."
    yield ""
    yield "| expected | median | values | verdict |"
    yield "|---|---:|---|---|"
    for verdict in result["verdicts"]:
        values = ", ".join(cell(value) for value in verdict["values"])
        shown = "-" if len(verdict["values"]) < 2 else values
        yield (
            f"| {verdict['expected']} | {cell(verdict['median'])} | {shown} "
            f"| **{verdict['verdict']}** |"
        )
    shown = list(result["tables"].items())[:SHOWN]
    for title, rows in shown:
        yield ""
        yield f"### {result['experiment']}: {title}"
        yield ""
        yield from markdown_table(rows)
    yield ""
    left = len(result["tables"]) - len(shown)
    if left:
        file = f"experiments/results/{result['experiment']}.json"
        yield f"{left} more table{'s' if left > 1 else ''} in `{file}`."
        yield ""
    yield conditions_line(result)
    yield ""


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows of equal keys as a Markdown table; numbers to the right."""
    if not rows:
        yield "(no rows)"
        return
    header = list(rows[0])
    numeric = [all(isinstance(row.get(h), int | float | None) for row in rows) for h in header]
    yield "| " + " | ".join(header) + " |"
    yield "|" + "|".join("---:" if number else "---" for number in numeric) + "|"
    for row in rows:
        yield "| " + " | ".join(cell(row.get(name)) for name in header) + " |"


def conditions_line(result: Mapping[str, Any]) -> str:
    """Under which conditions it was measured, in a line."""
    told = result["conditions"]
    seeds = f"seeds {', '.join(map(str, result['seeds']))}; " if "seeds" in result else ""
    machine, versions, source = told["machine"], told["versions"], told["source"]
    commit = (source["commit"] or "unknown")[:10] + (" with changes" if source["dirty"] else "")
    return (
        f"{machine['cpu']}, {machine['cores']} cores; Python {versions['python']}, "
        f"torch {versions['torch']}; commit {commit}; {told['date'][:10]}; {seeds}"
        f"{result['seconds']:.0f} s in all."
    )


def readme_block(results: Sequence[Mapping[str, Any]]) -> str:
    """The README's table: one number of each experiment, and how many expectations it met."""
    by_name = {result["experiment"]: result for result in results}
    lines = ["| | measured | expected | met, of all |", "|---|---:|---|---:|"]
    for (name, wanted), what in ROWS.items():
        if name not in by_name:
            continue
        verdicts = by_name[name]["verdicts"]
        shown = next(v for v in verdicts if v["name"] == wanted)
        met = sum(v["verdict"] == "reproduced" for v in verdicts)
        told, _, limits = shown["expected"].rpartition(": ")
        lines.append(
            f"| {what}: {told} | {cell(shown['median'])} | {limits} | {met} of {len(verdicts)} |"
        )
    return "\n".join((START, *lines, END))


def with_block(text: str, block: str, start: str = START, end: str = END) -> str:
    """A README with the table put between its marks, which the block brings itself."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return before + block + after


def load_results(directory: Path = RESULTS) -> list[dict[str, Any]]:
    """All result files, by name."""
    files = sorted(directory.glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--write", action="store_true", help="write the page and the README")
    given = parser.parse_args()
    results = load_results()
    text = page(results)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
        readme = README.read_text(encoding="utf-8")
        README.write_text(with_block(readme, readme_block(results)), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
