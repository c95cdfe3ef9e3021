"""The plot of `foreword bench engine`: decode rates as the batch grows, and as the prefix does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from foreword.bench._plot import COLOURS, OURS, names_at_ends, panels, plain_ticks, save
from foreword.bench._sweep_report import measured

Point: TypeAlias = "dict[str, Any]"

LINES = {
    "foreword": "Foreword",
    "vllm": "vLLM",
    "openvino": "OpenVINO",
    "llamacpp": "llama.cpp",
    "transformers": "transformers",
    "transformers-cb": "transformers CB",
}
"""Whose rates are drawn, and their names in the plot; each keeps its colour in all panels."""

AXES = {"requests": "requests", "prefix": "shared tokens", "suffix": "own tokens"}


def draw_engine(result: dict[str, Any], directory: Path, stem: str) -> list[Path]:
    """The plot of the sweep, if the result has one: lines through points that differ in one size.

    The sharers belong to it: they are where the lines meet.
    """
    cases = result["cases"]
    if "sweep" not in cases:
        return []
    points = [*cases["sweep"]["points"]]
    points += [cases["sharers"]] if "sharers" in cases else []
    lines = list(_lines(points))
    if not lines:
        return []
    path = directory / f"{stem}-sweep.svg"
    with panels(
        len(lines),
        width=1.0 + 2.9 * len(lines),
        height=3.4,
        title="Decoded tokens per second, all requests together",
    ) as (figure, axes):
        drawn = []
        for panel, (axis, members) in zip(axes, lines, strict=True):
            drawn.append((panel, _draw(panel, axis, members)))
        figure.draw_without_rendering()
        for panel, ends in drawn:
            names_at_ends(panel, ends)
        return [save(figure, path)]


def _lines(points: Sequence[Point]) -> Iterator[tuple[str, list[Point]]]:
    """For each size the most points that differ in it alone, ascending, if there are two."""
    for axis in AXES:
        groups: dict[tuple[int, ...], dict[int, Point]] = {}
        for point in points:
            others = tuple(point[other] for other in AXES if other != axis)
            groups.setdefault(others, {})[point[axis]] = point
        # Of equally many the larger: that is where sharing matters.
        _, most = max(groups.items(), key=lambda item: (len(item[1]), item[0]))
        if len(most) > 1:
            yield axis, [most[size] for size in sorted(most)]


def _draw(panel: Any, axis: str, points: list[Point]) -> list[tuple[float, float, str, str]]:
    """Draw one panel; the right ends of its lines with names and colours."""
    colours = dict(zip(LINES, (OURS, *COLOURS), strict=False))
    ends: list[tuple[float, float, str, str]] = []
    for name, called in LINES.items():
        there = [
            (point[axis], engine["decode"]["median"])
            for point in points
            if (engine := ({"foreword": point["foreword"]} | measured(point)).get(name))
        ]
        if there:
            panel.plot(*zip(*there, strict=True), "o-", color=colours[name])
            ends.append((*there[-1], called, colours[name]))
    fixed = [f"{points[0][o]:,} {AXES[o]}" for o in AXES if o != axis]
    panel.set_title(", ".join(fixed))
    panel.set_xlabel(AXES[axis])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.grid(axis="y")
    plain_ticks(panel.xaxis, [point[axis] for point in points])
    plain_ticks(panel.yaxis)
    return ends
