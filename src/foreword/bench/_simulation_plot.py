"""The plot of `foreword simulate`: what each policy gets out of a cache as the cache grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.bench._plot import (
    COLOURS,
    INK,
    OURS,
    PlotError,
    names_at_ends,
    panels,
    plain_ticks,
    save,
)

PANELS = (
    ("hit_rate", "prompt tokens found in the cache"),
    ("optimum_share", "optimum / makespan"),
)


def plot_simulation(result: dict[str, Any], path: Path) -> Path:
    """Draw a result of `foreword simulate` as SVG and return where: one line for each policy.

    The ideal is that of a cache without limits. The optimum is drawn for batches alone: where
    requests still arrive, the makespan is mostly theirs.

    Raises:
        PlotError: no matplotlib, no directory, or more policies than there are colours.
    """
    lines: dict[str, dict[int, dict[str, Any]]] = {}
    for run in result["results"]:
        lines.setdefault(run["asked"], {})[run["cache_tokens"]] = run
    colours = (OURS, *COLOURS)
    if len(lines) > len(colours):
        raise PlotError(f"{len(lines)} policies in one plot: draw {len(colours)} at most")
    if not path.parent.is_dir():
        raise PlotError(f"no directory {str(path.parent)!r} for the plot: make it first")
    drawn = PANELS if result["trace"]["batch"] else PANELS[:1]
    title = f"{result['trace']['name']}, {result['trace']['requests']:,} requests"
    with panels(
        len(drawn), width=1.4 + 3.2 * len(drawn), height=3.2, title=title, share_x=True
    ) as (figure, axes):
        for panel, (field, heading) in zip(axes, drawn, strict=True):
            panel.set_title(heading)
            panel.set_xlabel("tokens in the cache")
            panel.set_xscale("log")
            plain_ticks(panel.xaxis, sorted({run["cache_tokens"] for run in result["results"]}))
            panel.grid(axis="y")
            panel.set_ylim(0, 1)
            panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            for (_, runs), colour in zip(lines.items(), colours, strict=False):
                sizes = sorted(runs)
                values = [runs[size][field] for size in sizes]
                panel.plot(sizes, values, "o-", color=colour, clip_on=False)
        ideal = result["trace"]["ideal_hit_rate"]
        axes[0].axhline(ideal, color=INK, linestyle="--", linewidth=1)
        axes[0].annotate("ideal", (0, ideal), xycoords=("axes fraction", "data"), va="bottom")
        figure.draw_without_rendering()
        for panel, (field, _) in zip(axes, drawn, strict=True):
            ends = []
            for (name, runs), colour in zip(lines.items(), colours, strict=False):
                last = max(runs)
                ends.append((float(last), float(runs[last][field]), name, colour))
            names_at_ends(panel, ends)
        return save(figure, path)
