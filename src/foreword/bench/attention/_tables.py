"""The tables of `foreword bench attention`, as people read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from foreword.bench._layout import aligned, value_text
from foreword.bench.attention._trees import AS_PUBLISHED, PAT_TREES, Scale

TITLES = {
    "trees": "PAT's trees: one decode step of one layer",
    "chunk": "ChunkAttention's table: a shared prompt and 64 own tokens; the same unshared",
    "sweep": "Hydragen's sweep: a growing shared prefix and 64 own tokens",
    "alone": "Nothing shared",
}
RIVALS = {
    "per_request": "the fastest per-request kernel",
    "unshared": "ours without sharing, on the same slots",
    "copies": "ours without sharing, on copies",
    "torch": "the torch backend",
    "flashinfer-cascade": "FlashInfer's cascade",
    "flex": "FlexAttention",
    "chunk-attention": "ChunkAttention's kernel",
}
"""Beside whom ours is put in the lines below a table, and how they are called there."""


def attention_tables(result: dict[str, Any]) -> str:
    """Every case of a result in plain aligned text, conditions first. No final newline."""
    parts = [attention_conditions(result)]
    everywhere = [row for case in result["cases"].values() for row in case["rows"]]
    present = {*contenders_of(everywhere), "everybody"}
    for name, case in result["cases"].items():
        rows = case["rows"]
        missing = _left_out(rows)
        lines = [TITLES[name], aligned(_rows(rows)), *_ratios(rows)]
        lines += [
            f"Left out of {n} of {len(rows)} rows: {who}: {why}"
            for (who, why), n in missing.items()
            if who in present
        ]
        parts.append("\n".join(lines))
    absent = {(who, why): None for who, why in _left_out(everywhere) if who not in present}
    if absent:
        parts.append("\n".join(f"Not measured: {who}: {why}" for who, why in absent))
    return "\n\n".join(parts)


def attention_conditions(result: dict[str, Any]) -> str:
    """Machine, its peaks, versions, commit, load; what the columns mean."""
    machine, source, quiet = result["machine"], result["source"], result["quietness"]
    settings, peaks = result["settings"], result["peaks"]
    commit = (source["commit"] or "unknown")[:10] + (" (with changes)" if source["dirty"] else "")
    loads = (quiet["load_before"], quiet["load_after"])
    load = "/".join(f"{load[0]:.1f}" for load in loads if load)
    products = ", ".join(f"{name} {value:,.0f}" for name, value in peaks["matmul_gflops"].items())
    where = machine.get("accelerator") or (
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['flags'])}); "
        f"{settings['threads']} threads"
    )
    used = dict.fromkeys(result["instructions"].values())
    if used:
        where += f"; native on {', '.join(used)}"
    return (
        f"{where}\n"
        f"Measured peaks: matrix products {products} GFLOP/s, reads "
        f"{peaks['read_gb_per_s']:,.1f} GB/s; torch {result['versions']['torch']}; "
        f"foreword {result['versions']['foreword']}, commit {commit}; {result['date'][:10]}; "
        f"load {load or 'unknown'}\n"
        "Milliseconds: medians, caches warm; ± half the range. roofline: below that no call can "
        "read its bytes from memory or do its products; of it: the share that ours reaches.\n"
        "cold: ours after the caches were flushed. join: plan and first call, as when a request "
        "joins (an engine plans once for all layers); step: advance and call, as when none does.\n"
        "gain: the fastest per-request kernel's time over ours."
    )


def contenders_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Who was measured in some of the rows, in their order."""
    names: dict[str, bool] = {}
    for row in rows:
        for name, each in row.get("contenders", {}).items():
            names[name] = names.get(name, False) or "skipped" not in each
    return [name for name, ran in names.items() if ran]


def label(row: dict[str, Any]) -> str:
    """How a row is called: its tree, with PAT's number and the scale where it has them."""
    text, scale = str(row["tree"]), Scale(**row["scale"])
    if row["published"] in PAT_TREES:
        text = f"{PAT_TREES.index(row['published']) + 1}: {text}"
    return text if scale == AS_PUBLISHED else f"{text} ({scale})"


def _rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    names = contenders_of(rows)
    table = [["tree", "heads", "type", "dedup", "roofline", *names]]
    table[0] += ["of it", "cold", "join", "step", "gain"]
    for row in rows:
        cells = [
            label(row),
            f"{row['heads']}/{row['kv_heads']} x {row['head_dim']}",
            {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}[row["dtype"]],
            f"{row['dedup']:.1f}x",
            _ms(row["roofline_ms"]),
        ]
        cells += [_cell(row, name) for name in names]
        table.append(cells + _ours(row))
    return table


def _cell(row: dict[str, Any], name: str) -> str:
    each = row.get("contenders", {}).get(name, {"skipped": ""})
    if "skipped" in each:
        return "-"
    median = each["warm"]["median"]
    return value_text(each["warm"], _digits(median)) if name == row["ours"] else _ms(median)


def _ours(row: dict[str, Any]) -> list[str]:
    ours = row.get("contenders", {}).get(row.get("ours"))
    if ours is None:
        return [""] * 5
    gain = row["ours_over"]["warm"].get("per_request")
    return [
        f"{100 * ours['warm_share_of_roofline']:.0f} %",
        _ms(ours["cold"]["median"]),
        _ms(ours["first"]["median"]),
        _ms(ours["advanced"]["median"]),
        f"{gain:.2f}x" if gain else "-",
    ]


def _ratios(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each rival: how many times faster ours is, over all rows that have both."""
    lines = []
    for rival, called in RIVALS.items():
        texts = []
        for kind in ("warm", "cold"):
            ratios = [
                row["ours_over"][kind][rival]
                for row in rows
                if rival in row.get("ours_over", {}).get(kind, {})
            ]
            if ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
                texts.append(
                    f"{kind} {mean:.2f}x ({min(ratios):.2f}x to {max(ratios):.2f}x)"
                    + (f" over {len(ratios)} of {len(rows)} rows" if kind == "warm" else "")
                )
        if texts:
            lines.append(f"Faster than {called}, geometric mean: {', '.join(texts)}")
    return lines


def _left_out(rows: list[dict[str, Any]]) -> Counter[tuple[str, str]]:
    """Who is missing and why, and from how many rows."""
    reasons: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if "skipped" in row:
            reasons["everybody", row["skipped"]] += 1
        for name, each in row.get("contenders", {}).items():
            if "skipped" in each:
                reasons[name, each["skipped"]] += 1
    return reasons


def _digits(ms: float) -> int:
    return 3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0


def _ms(ms: float) -> str:
    return f"{ms:,.{_digits(ms)}f}"
