"""Results as people read them: the tables of a run, and the block of numbers in the README.

The README's block lies between two marks and names the result file it was made from, so that a test
can make it again and see that nobody edited a number.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError
from foreword.bench._engine_report import conditions, engine_tables, sharer_rows, title
from foreword.bench.attention._tables import attention_tables
from foreword.bench.serve._tables import load_tables

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
_TABLES = {
    "foreword bench engine": engine_tables,
    "foreword bench attention": attention_tables,
    "foreword bench serve": load_tables,
}
"""What shows a result, by the kind it says it is of."""

_SOURCE = re.compile(r"\]\((?P<path>[^)\s]+\.json)\)")


class ReportError(ForewordError, ValueError):
    """A result file or a README that cannot be used, or that do not agree."""


def load_result(path: Path) -> dict[str, Any]:
    """A result as one of the commands of `foreword bench` wrote it.

    Raises:
        ReportError: unreadable, or not such a file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read a benchmark result from {str(path)!r}: {error}") from error
    if not isinstance(result, dict) or result.get("kind") not in _TABLES:
        kinds = ", ".join(f"`{kind}`" for kind in _TABLES)
        raise ReportError(f"{str(path)!r} is not a result of {kinds}")
    return result


def tables(result: dict[str, Any]) -> str:
    """Every case of a result in plain aligned text, conditions first. No final newline."""
    return _TABLES[result["kind"]](result)


def readme_block(result: dict[str, Any], link: str) -> str:
    """The README's table in Markdown, marks included; `link` is the result file's address there.

    Raises:
        ReportError: the result lacks the case the table shows.
    """
    case = result.get("cases", {}).get("sharers")
    if case is None:
        raise ReportError("the README's table needs the case 'sharers', which this result lacks")
    head, *rows = sharer_rows(case)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    note = conditions(result).replace("\n", "; ")
    model = result["model"]
    return "\n".join(
        [
            START,
            f"{title(case)}. A Llama of random weights: hidden {model['hidden']}, "
            f"{model['layers']} layers, {model['heads']}/{model['kv_heads']} heads of "
            f"{model['head_dim']}, vocabulary {model['vocab']}.",
            "",
            *lines,
            "",
            f"{note}. Every sample: [{Path(link).name}]({link}).",
            END,
        ]
    )


def check_readme(readme: Path) -> None:
    """Make the block of `readme` again from the result file it names, and compare.

    Raises:
        ReportError: there is no block, it names no result file, or it says something else than the
            file does.
    """
    block, path = _block(readme)
    source = _SOURCE.search(block)
    if source is None:
        raise ReportError(f"the block in {path} links no result file (.json)")
    link = source["path"]
    if readme_block(load_result(readme.parent / link), link) != block:
        raise ReportError(
            f"the numbers in {path} are not those of {link}: run "
            f"`foreword bench report {link} --write {path}`"
        )


def write_readme(readme: Path, result_path: Path) -> None:
    """Replace the block of `readme` by the one of a result file; mutates the file, nothing else.

    Raises:
        ReportError: there is no block to replace, or the result does not do.
    """
    block, _ = _block(readme)
    try:
        link = result_path.resolve().relative_to(readme.resolve().parent).as_posix()
    except ValueError:
        raise ReportError(
            f"{str(result_path)!r} is not below {str(readme.resolve().parent)!r}, so the README "
            "cannot link it: copy it to benchmarks/results first"
        ) from None
    text = readme.read_text(encoding="utf-8")
    new = readme_block(load_result(result_path), link)
    readme.write_text(text.replace(block, new), encoding="utf-8")


def _block(readme: Path) -> tuple[str, str]:
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError(f"cannot read {str(readme)!r}: {error}") from error
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ReportError(f"{readme.name} needs one {START} and, behind it, one {END}")
    return text[text.index(START) : text.index(END) + len(END)], readme.name
