"""The results of all experiments as one page of the documentation.

    python -m experiments.report            # print it
    python -m experiments.report --write    # write docs/experiments.md, and the tables elsewhere

The README has tables of verdicts, and a method's page in docs/prefixes the results of its own
experiment, each between marks. A test holds all of them to the result files.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.lab import RESULTS, ROOT, cell

SHOWN = 2
"""Tables of an experiment that the page shows; the others are in its result file."""

PAGE = ROOT / "docs" / "experiments.md"
README = ROOT / "README.md"
PAGES = tuple(ROOT / "docs" / name for name in ("prefixes", "training", "howto"))
SPEEDS = ROOT / "benchmarks" / "results"
SPEED_FILES = ("prefixes-*.json", "training-*.json")
START, END = "<!-- {}:start -->", "<!-- {}:end -->"
_EMBEDDED = re.compile(r"<!-- result:(\w+):start -->.*?<!-- result:\1:end -->", re.DOTALL)
_TABLE = re.compile(r"<!-- table:(\w+):(\d):start -->.*?<!-- table:\1:\2:end -->", re.DOTALL)
ROWS: dict[tuple[str, str], str] = {
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
"""What the README shows of schedulers: an experiment's verdict by name, and what it calls it."""

PREFIX_ROWS: dict[tuple[str, str], str] = {
    ("prefixes_mixed", "llama-125m_one"): "32 prefixes in one batch of 64",
    ("prefixes_mixed", "llama-125m_peft"): "32 prefixes in one batch of 64",
    ("author_prefixes", "none"): "Authors' prefixes on nano, held-out text",
    ("author_prefixes", "text"): "Authors' prefixes on nano, held-out text",
    ("prefix_tuning", "unseen"): "Prefix-Tuning, few examples",
    ("prefix_tuning", "extrapolates"): "Prefix-Tuning, many examples",
    ("prefix_e2e", "average"): "Prefix-Tuning on real tables (E2E), nats per token",
    ("control_prefixes", "over-tokens"): "Control Prefixes, equal stored size",
    ("prompt_gating", "gated"): "Prompt Gating",
    ("comparative", "gain"): "Comparative prefixes",
    ("private_text", "codes"): "Private synthetic text",
    ("robust_prefix", "real"): "Robust Prefix-Tuning, SST-2",
    ("ntk_attention", "useful"): "NTK-Attention",
}
"""The same of learned prefixes."""

TRAINING_ROWS: dict[tuple[str, str], str] = {
    ("training_cost", "of_bound"): "Forward and backward, prompts shared",
    ("training_cost", "long"): "Forward and backward, prompts shared",
    ("training_cost", "corners"): "Short prompts, automatic choice",
    ("training_step", "llama-25m_engine"): "A whole GRPO step, 25M weights",
    ("training_step", "llama-25m_shared"): "A whole GRPO step, 25M weights",
    ("training_step", "llama-25m_dpo_64"): "A DPO step, 25M weights",
    ("shared_grpo", "speed engine"): "GRPO on additions, end to end",
    ("prefix_rft", "beyond"): "Prefix-RFT on additions",
    ("prefix_rft", "sequential"): "Prefix-RFT on additions",
}
"""The same of training with shared prefixes."""

BLOCKS = {"experiments": ROWS, "prefixes": PREFIX_ROWS, "training": TRAINING_ROWS}
"""The README's tables by the name of their marks."""

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
    yield from body(result, "###", SHOWN)
    yield ""


def body(result: Mapping[str, Any], heading: str, tables: int) -> Iterator[str]:
    """Verdicts, the first tables below headings, conditions."""
    yield "| expected | median | values | verdict |"
    yield "|---|---:|---|---|"
    for verdict in result["verdicts"]:
        values = ", ".join(cell(value) for value in verdict["values"])
        shown = "-" if len(verdict["values"]) < 2 else values
        yield (
            f"| {verdict['expected']} | {cell(verdict['median'])} | {shown} "
            f"| **{verdict['verdict']}** |"
        )
    first = list(result["tables"].items())[:tables]
    for title, rows in first:
        yield ""
        yield f"{heading} {result['experiment']}: {title}"
        yield ""
        yield from markdown_table(rows)
    yield ""
    left = len(result["tables"]) - len(first)
    if left:
        file = result.get("file", f"experiments/results/{result['experiment']}.json")
        yield f"{left} more table{'s' if left > 1 else ''} in `{file}`."
        yield ""
    yield conditions_line(result)


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


def readme_block(results: Sequence[Mapping[str, Any]], mark: str) -> str:
    """A table of the README: one number of each experiment, and how many expectations it met."""
    by_name = {result["experiment"]: result for result in results}
    lines = ["| | measured | expected | met, of all |", "|---|---:|---|---:|"]
    for (name, wanted), what in BLOCKS[mark].items():
        if name not in by_name:
            continue
        verdicts = by_name[name]["verdicts"]
        shown = next(v for v in verdicts if v["name"] == wanted)
        met = sum(v["verdict"] == "reproduced" for v in verdicts)
        told, _, limits = shown["expected"].rpartition(": ")
        lines.append(
            f"| {what}: {told} | {cell(shown['median'])} | {limits} | {met} of {len(verdicts)} |"
        )
    return "\n".join((START.format(mark), *lines, END.format(mark)))


def with_blocks(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A README with its tables put between their marks; those without marks are left out."""
    for mark in BLOCKS:
        start, end = START.format(mark), END.format(mark)
        if start in text:
            text = with_block(text, readme_block(results, mark), start, end)
    return text


def with_results(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """A page with the results that it marks put between the marks.

    `<!-- result:NAME:start -->` takes verdicts and first table, `<!-- table:NAME:2:start -->` the
    second table alone.

    Raises:
        KeyError: a mark names an experiment that has no result.
    """
    by_name = {result["experiment"]: result for result in results}

    def block(found: re.Match[str]) -> str:
        mark = f"result:{found[1]}"
        lines = body(by_name[found[1]], "###", 1)
        return "\n".join((START.format(mark), "", *lines, "", END.format(mark)))

    def one_table(found: re.Match[str]) -> str:
        mark = f"table:{found[1]}:{found[2]}"
        rows = list(by_name[found[1]]["tables"].values())[int(found[2]) - 1]
        return "\n".join((START.format(mark), "", *markdown_table(rows), "", END.format(mark)))

    return _TABLE.sub(one_table, _EMBEDDED.sub(block, text))


def with_block(text: str, block: str, start: str, end: str) -> str:
    """A text with the block put between its marks, which the block brings itself."""
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return before + block + after


def load_results(directory: Path = RESULTS) -> list[dict[str, Any]]:
    """All result files, by name."""
    files = sorted(directory.glob("*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def load_speeds(directory: Path = SPEEDS) -> list[dict[str, Any]]:
    """What was measured of speed, in the form of an experiment's results."""
    found = []
    for path in sorted(path for form in SPEED_FILES for path in directory.glob(form)):
        result = json.loads(path.read_text(encoding="utf-8"))
        verdicts = [
            {
                **verdict,
                "median": verdict["value"],
                "values": [],
                "verdict": "reproduced" if verdict["met"] else "not reproduced",
            }
            for verdict in result["verdicts"]
        ]
        name = path.stem.replace("-", "_")
        tables = {
            title: rows
            for title, rows in result["facts"].items()
            if isinstance(rows, list) and isinstance(rows[0], dict)
        }
        file = f"benchmarks/results/{path.name}"
        found.append(
            {**result, "experiment": name, "verdicts": verdicts, "tables": tables, "file": file}
        )
    return found


def pages() -> list[Path]:
    """The pages that may show results between marks."""
    return sorted(path for folder in PAGES for path in folder.glob("*.md"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--write", action="store_true", help="write the pages and the README")
    given = parser.parse_args()
    results = load_results()
    text = page(results)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
        known = results + load_speeds()
        readme = README.read_text(encoding="utf-8")
        README.write_text(with_blocks(readme, known), encoding="utf-8")
        for path in pages():
            path.write_text(with_results(path.read_text("utf-8"), known), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
