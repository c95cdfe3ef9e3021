"""The plots of `foreword bench serve`: what a server gives, and how long it lets wait, by rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.bench._plot import COLOURS, INK, OURS, names_at_ends, panels, plain_ticks, save


def draw_load(result: dict[str, Any], directory: Path, stem: str) -> list[Path]:
    """Good answers and waits over the offered rate; nothing of a result with a single rate."""
    runs = sorted(result["runs"], key=lambda run: float(run["rate"]))
    if len({run["rate"] for run in runs}) < 2:
        return []
    rates = [run["rate"] for run in runs]
    title = f"{result['server']['model']}: good answers per second by requests per second"
    good = directory / f"{stem}-goodput.svg"
    with panels(1, width=5.2, height=3.2, title=title) as (figure, (panel,)):
        panel.plot(rates, [run["goodput"] for run in runs], "o-", color=OURS)
        panel.plot(rates, rates, "--", color=INK, linewidth=1)
        refused = [run["counts"]["refused"] / run["seconds"] for run in runs]
        panel.plot(rates, refused, "o-", color=COLOURS[0])
        panel.set_xlabel("requests per second")
        panel.set_ylim(0)
        panel.grid(axis="y")
        figure.draw_without_rendering()
        ends = [
            (rates[-1], runs[-1]["goodput"], "good", OURS),
            (rates[-1], rates[-1], "all", INK),
            (rates[-1], refused[-1], "refused", COLOURS[0]),
        ]
        names_at_ends(panel, ends)
        save(figure, good)
    return [good, _draw_waits(result, runs, directory / f"{stem}-waits.svg")]


def _draw_waits(result: dict[str, Any], runs: list[dict[str, Any]], path: Path) -> Path:
    title = f"{result['server']['model']}: seconds by requests per second"
    lines = (
        ("first token p50", "ttft", "p50", OURS, "-"),
        ("first token p99", "ttft", "p99", OURS, "--"),
        ("per token p50", "tpot", "p50", COLOURS[1], "-"),
        ("per token p99", "tpot", "p99", COLOURS[1], "--"),
    )
    with panels(1, width=5.6, height=3.2, title=title) as (figure, (panel,)):
        ends = []
        for name, what, which, colour, style in lines:
            points = [
                (run["rate"], run[what][which]) for run in runs if run[what][which] is not None
            ]
            if points:
                panel.plot(*zip(*points, strict=True), f"o{style}", color=colour)
                ends.append((*points[-1], name, colour))
        panel.set_xlabel("requests per second")
        panel.set_yscale("log")
        plain_ticks(panel.yaxis)
        panel.grid(axis="y")
        figure.draw_without_rendering()
        names_at_ends(panel, ends)
        return save(figure, path)
