"""Plots of a result, by its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.bench._plot import PlotError
from foreword.bench._sweep_plot import draw_engine
from foreword.bench.attention._plots import draw_attention
from foreword.bench.serve._plots import draw_load

_DRAW = {
    "foreword bench engine": draw_engine,
    "foreword bench attention": draw_attention,
    "foreword bench serve": draw_load,
}
"""What draws a result: writes `directory/stem-CASE.svg` for each case it can show."""


def write_plots(result: dict[str, Any], directory: Path, stem: str) -> list[Path]:
    """Draw every case of a result that has a plot: `stem-CASE.svg` in `directory`.

    Returns the files written, replacing those of the same names.

    Raises:
        PlotError: no such directory, no matplotlib, or a kind of result that has no plots.
    """
    draw = _DRAW.get(result["kind"])
    if draw is None:
        raise PlotError(f"there are no plots of a result of {result['kind']!r}")
    if not directory.is_dir():
        raise PlotError(f"no directory {str(directory)!r} for the plots: make it first")
    return draw(result, directory, stem)
