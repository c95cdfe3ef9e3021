"""Plots of `foreword bench attention`: times as a prefix grows, and gains tree by tree."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from foreword.bench._plot import COLOURS, INK, OURS, names_at_ends, panels, plain_ticks, save
from foreword.bench.attention._settings import PER_REQUEST
from foreword.bench.attention._tables import label
from foreword.bench.attention._trees import Tree

Row: TypeAlias = "dict[str, Any]"

LINES = {
    "native": "native",
    "triton": "triton",
    "torch": "torch",
    "per_request": "per request",
    "flex": "FlexAttention",
    "flashinfer-cascade": "FlashInfer cascade",
    "chunk-attention": "ChunkAttention",
}
"""Whose times are drawn, and their names in the plot; `per_request` is the fastest of those."""


def draw_attention(result: dict[str, Any], directory: Path, stem: str) -> list[Path]:
    """A plot for each of the cases trees, chunk and sweep that the result has."""
    paths = []
    for case, draw in (("trees", _gains), ("chunk", _growth), ("sweep", _growth)):
        rows = [row for row in result["cases"].get(case, {"rows": []})["rows"] if row.get("ours")]
        path = directory / f"{stem}-{case}.svg"
        if rows and draw(rows, path):
            paths.append(path)
    return paths


def _gains(rows: list[Row], path: Path) -> bool:
    """Ours over the fastest per-request kernel, a line of dots for each tree, a panel for each set
    of heads; beside each dot the dedup ratio as a tick."""
    rows = [row for row in rows if "per_request" in row["ours_over"]["warm"]]
    groups = _grouped(rows)
    trees = list(dict.fromkeys(_published(row) for row in rows))
    if not rows:
        return False
    with panels(
        len(groups),
        width=2.6 + 1.9 * len(groups),
        height=1.3 + 0.2 * len(trees),
        title="Times faster than the fastest per-request kernel (dot), and dedup ratio (tick)",
        share_x=True,
    ) as (figure, axes):
        for panel, (heads, members) in zip(axes, groups.items(), strict=True):
            heights = [-trees.index(_published(row)) for row in members]
            gains = [row["ours_over"]["warm"]["per_request"] for row in members]
            panel.axvline(1, color=INK, linewidth=0.8)
            panel.hlines(heights, 1, gains, color=OURS, linewidth=1)
            panel.plot(gains, heights, "o", color=OURS)
            panel.plot([row["dedup"] for row in members], heights, "|", color=INK, markersize=7)
            panel.set_title(heads)
            panel.set_xscale("log")
            panel.grid(axis="x")
            plain_ticks(panel.xaxis)
        axes[0].set_yticks([-i for i in range(len(trees))], trees)
        axes[0].set_ylim(0.7 - len(trees), 0.6)
        save(figure, path)
    return True


def _growth(rows: list[Row], path: Path) -> bool:
    """Milliseconds against the length of the shared prefix at the largest batch, a panel for each
    set of heads, a line for each contender, the roofline dotted."""
    rows = [row for row in rows if len(Tree.parse(row["tree"]).nodes) == 2]
    largest = max((row["batch"] for row in rows), default=0)
    groups = _grouped([row for row in rows if row["batch"] == largest])
    groups = {name: members for name, members in groups.items() if len(members) > 1}
    if not groups:
        return False
    with panels(
        len(groups),
        width=1.0 + 2.9 * len(groups),
        height=3.4,
        title=f"Milliseconds per call, {largest} requests behind a shared prefix, caches warm",
    ) as (figure, axes):
        drawn = []
        for panel, (heads, members) in zip(axes, groups.items(), strict=True):
            drawn.append((panel, _lines(panel, members)))
            panel.set_title(heads)
            panel.set_xlabel("shared tokens")
        figure.draw_without_rendering()
        for panel, ends in drawn:
            names_at_ends(panel, ends)
        save(figure, path)
    return True


def _lines(panel: Any, rows: list[Row]) -> list[tuple[float, float, str, str]]:
    """Draw the lines of one panel; their right ends with names and colours."""
    prefix = {id(row): Tree.parse(row["tree"]).tokens[0] for row in rows}
    rows = sorted(rows, key=lambda row: prefix[id(row)])
    others = iter(COLOURS)
    ends: list[tuple[float, float, str, str]] = []
    for name, called in LINES.items():
        points = [(prefix[id(row)], t) for row in rows if (t := _time(row, name)) is not None]
        if not points:
            continue
        colour = OURS if name == rows[0]["ours"] else next(others)
        panel.plot(*zip(*points, strict=True), "o-", color=colour)
        ends.append((*points[-1], called, colour))
    bound = [(prefix[id(row)], row["roofline_ms"]) for row in rows]
    panel.plot(*zip(*bound, strict=True), ":", color=INK)
    ends.append((*bound[-1], "roofline", INK))
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(axis="y")
    plain_ticks(panel.xaxis, sorted(prefix.values()))
    plain_ticks(panel.yaxis)
    return ends


def _time(row: Row, name: str) -> float | None:
    """Warm milliseconds of a contender, or of the fastest per-request one; None if not measured."""
    names = PER_REQUEST if name == "per_request" else (name,)
    ran = [each for n in names if "warm" in (each := row["contenders"].get(n, {}))]
    return min((float(each["warm"]["median"]) for each in ran), default=None)


def _published(row: Row) -> str:
    """A tree's name, the same for every scale and set of heads."""
    return label(row | {"tree": row["published"] or row["tree"], "scale": {}})


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by heads and type, in the order in which they come."""
    groups: dict[str, list[Row]] = {}
    short = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}
    for row in rows:
        name = f"{row['heads']}/{row['kv_heads']} x {row['head_dim']}, {short[row['dtype']]}"
        groups.setdefault(name, []).append(row)
    return groups
