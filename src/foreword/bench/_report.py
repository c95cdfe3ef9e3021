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

START, END = "<!-- bench:start -->", "<!-- bench:end -->"
_SOURCE = re.compile(r"\]\((?P<path>[^)\s]+\.json)\)")

_PEER_NAMES = {
    "transformers": "transformers `generate`, prefix cache expanded",
    "vllm": "vLLM, CPU build",
}


class ReportError(ForewordError, ValueError):
    """A result file or a README that cannot be used, or that do not agree."""


def load_result(path: Path) -> dict[str, Any]:
    """A result as `foreword bench engine` wrote it.

    Raises:
        ReportError: unreadable, or not such a file.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReportError(f"cannot read a benchmark result from {str(path)!r}: {error}") from error
    if not isinstance(result, dict) or result.get("kind") != "foreword bench engine":
        raise ReportError(f"{str(path)!r} is not a result of `foreword bench engine`")
    return result


def tables(result: dict[str, Any]) -> str:
    """Every case of a result in plain aligned text, conditions first. No final newline."""
    parts = [conditions(result)]
    cases = result["cases"]
    if "sharers" in cases:
        case = cases["sharers"]
        parts.append(_title(case) + "\n" + _aligned(_sharer_rows(case)))
        parts.append(_ours(case["foreword"]))
        unshared = case["unshared"]
        parts.append(
            f"Ours at {unshared['prefix']} tokens, {unshared['requests']} requests, sharing on "
            f"against off: decode {unshared['decode_shared_over_unshared']:.2f}x, whole run "
            f"{unshared['total_unshared_over_shared']:.2f}x"
        )
    if "curve" in cases:
        parts.append(_curve(cases["curve"]))
    if "joins" in cases:
        parts.append(_joins(cases["joins"]))
    if "nothing-to-share" in cases:
        parts.append(_alone(cases["nothing-to-share"]))
    return "\n\n".join(parts)


def conditions(result: dict[str, Any]) -> str:
    """Machine, versions, commit, repeats and load in two lines or so."""
    machine, source, quiet = result["machine"], result["source"], result["quietness"]
    commit = (source["commit"] or "unknown")[:10] + (" (with changes)" if source["dirty"] else "")
    sizes = result["settings"]["sizes"]
    memory = (machine["memory_bytes"] or 0) / 2**30
    loads = (quiet["load_before"], quiet["load_after"])
    load = "/".join(f"{load[0]:.1f}" for load in loads if load)
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}), "
        f"{memory:.0f} GiB; {result['settings']['threads']} threads\n"
        f"{result['model']['name']} {result['model']['dtype']}; "
        f"torch {result['versions']['torch']}, transformers {result['versions']['transformers']}; "
        f"foreword {result['versions']['foreword']}, commit {commit}; {result['date'][:10]}; "
        f"medians of {sizes['repeats']}, ± half the range; load {load or 'unknown'}"
    )


def readme_block(result: dict[str, Any], link: str) -> str:
    """The README's table in Markdown, marks included; `link` is the result file's address there.

    Raises:
        ReportError: the result lacks the case the table shows.
    """
    case = result["cases"].get("sharers")
    if case is None:
        raise ReportError("the README's table needs the case 'sharers', which this result lacks")
    head, *rows = _sharer_rows(case)
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    note = conditions(result).replace("\n", "; ")
    model = result["model"]
    return "\n".join(
        [
            START,
            f"{_title(case)}. A Llama of random weights: hidden {model['hidden']}, "
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


def _title(case: dict[str, Any]) -> str:
    return (
        f"{case['requests']} requests behind {case['prefix']:,} shared tokens, {case['suffix']} "
        f"own tokens and {case['new_tokens']} new ones each"
    )


def _sharer_rows(case: dict[str, Any]) -> list[list[str]]:
    ours = case["foreword"]
    rows = [["", "decode, tokens/s", "step, ms", "whole run, s", "peak memory, GB", "ours is"]]
    rows.append(["Foreword", *_speeds(ours), ""])
    for name, peer in case["peers"].items():
        label = _PEER_NAMES.get(name, name)
        if "skipped" in peer:
            rows.append([label, "not measured", "", "", "", ""])
        else:
            rows.append([label, *_speeds(peer), f"{peer['ours_over_theirs']:.2f}x"])
    return rows


def _speeds(row: dict[str, Any]) -> list[str]:
    return [
        _value(row["decode"], 0),
        _value(row["decode_step"], 1),
        _value(row["total_cold"], 1),
        f"{row['peak_rss_bytes'] / 1e9:.1f}",
    ]


def _ours(row: dict[str, Any]) -> str:
    computed = ", ".join(str(count) for count in sorted(set(row["prompt_tokens_computed"])))
    return (
        f"Prompt tokens computed: {computed} of {row['prompt_tokens']}, distinct: "
        f"{row['prompt_tokens_distinct']}\n"
        f"Keys and values held: {row['kv_bytes_held'] / 1e6:.1f} MB, "
        f"{row['kv_held_over_distinct']:.3f}x of the distinct tokens' "
        f"({row['kv_bytes_unshared'] / 1e6:.1f} MB unshared)\n"
        f"Planning and text: {100 * row['planning_share']['median']:.1f} % of a decode step; "
        f"backend {row['backend']}"
    )


def _curve(case: dict[str, Any]) -> str:
    rows = [["shared prefix", "step, ms", "attention alone, ms", "rest, ms", "tokens computed"]]
    for point in case["points"]:
        rows.append(
            [
                f"{point['prefix']:,}",
                _value(point["step"], 1),
                _value(point["attention_alone"], 1),
                _value(point["rest"], 1),
                f"{point['prompt_tokens_computed'][0]} of {point['prompt_tokens_new'][0]} new",
            ]
        )
    products = case["products"]
    packed = products["packed"]
    growth = case["growth"]
    return (
        f"Decode step of {case['requests']} requests as the shared prefix grows\n{_aligned(rows)}\n"
        f"From first to last the step grew by {growth['step_ms']:.1f} ms, the attention alone by "
        f"{growth['attention_alone_ms']:.1f} ms\n"
        f"Matrix products alone: {_value(products['plain'], 1)} ms"
        + (f", with packed weights {_value(packed, 1)} ms" if packed else "")
    )


def _joins(case: dict[str, Any]) -> str:
    wait = case["time_to_first_token"]
    return (
        f"One more behind {case['running']} running: {case['prompt_tokens_computed'][0]} prompt "
        f"tokens computed, {case['prompt_tokens_own'][0]} are its own; first token after "
        f"{_value(wait, 0)} ms (a step before: {_value(case['step_before'], 0)} ms)"
    )


def _alone(case: dict[str, Any]) -> str:
    return (
        f"Nothing to share, {case['requests']} requests of {case['prompt']} tokens: sharing on "
        f"{_value(case['on']['total'], 2)} s, off {_value(case['off']['total'], 2)} s, speed "
        f"{case['speed_on_over_off']:.2f}x"
    )


def _value(value: dict[str, Any], digits: int) -> str:
    half = (value["max"] - value["min"]) / 2
    text = f"{value['median']:,.{digits}f}"
    return text if len(value["samples"]) == 1 else f"{text} ± {half:,.{digits}f}"


def _aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
