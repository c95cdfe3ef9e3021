"""How plots look: one style for all of them, as SVG that can be read on white and on black.

matplotlib is an optional extra and is loaded when something is drawn. There is no background, and
ink and colours are of middle lightness, because nobody knows on what the plot will be shown. Lines
carry their names at their ends; there are no legends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from foreword._errors import ForewordError

INK = "#7d8590"
OURS = "#2f81f7"
COLOURS = ("#d9730d", "#2da44e", "#a371f7", "#db4c77", "#1b9e9e", "#b58900")
"""Those beside ours, in their order."""

_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "foreword",  # the same result gives the same file
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "grid.color": INK,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
}
_LEADING = 1.25  # from one label's line to the next, in font sizes


class PlotError(ForewordError, RuntimeError):
    """A plot that cannot be drawn: no matplotlib, or nothing in the result to draw."""


@contextmanager
def panels(
    columns: int, *, width: float, height: float, title: str, share_x: bool = False
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with panels side by side, in the common style: (figure, its axes, left to right).

    Everything that belongs to the figure has to be drawn inside, saving it included.

    Args:
        columns: number of panels; they share their y axis.
        width, height: of the figure, in inches.
        title: above the panels, left.
        share_x: whether they share their x axis too.

    Raises:
        PlotError: matplotlib is not installed.
    """
    try:
        matplotlib: Any = import_module("matplotlib")
        figure_module: Any = import_module("matplotlib.figure")
    except ImportError:
        raise PlotError(
            "plots need matplotlib: pip install 'foreword[bench]', or pip install matplotlib"
        ) from None
    with matplotlib.rc_context(_STYLE):
        figure = figure_module.Figure(figsize=(width, height), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        axes = figure.subplots(1, columns, sharex=share_x, sharey=True, squeeze=False)
        yield figure, list(axes[0])


def save(figure: Any, path: Path) -> Path:
    """Write the figure as SVG and return its path; the same figure always gives the same bytes."""
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    return path


def names_at_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names behind the right ends of lines, moved apart where they would overlap.

    Args:
        axes: of the lines; their limits must be final.
        ends: for each line the end's x and y in data units, its name and its colour.
    """
    height = axes.get_window_extent().height * 72 / axes.figure.dpi  # points
    leading = _LEADING * 9 / height
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        (to_axes.transform((x, y))[1], x, y, name, colour) for x, y, name, colour in ends
    )
    heights = [each[0] for each in placed]
    for i in range(1, len(heights)):  # upwards, then back down if that left the panel
        heights[i] = max(heights[i], heights[i - 1] + leading)
    if heights:
        heights[-1] = min(heights[-1], 1.0)
    for i in range(len(heights) - 1, 0, -1):
        heights[i - 1] = min(heights[i - 1], heights[i] - leading)
    for (_, x, y, name, colour), level in zip(placed, heights, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.02, level),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def plain_ticks(axis: Any, values: Sequence[float] | None = None) -> None:
    """Numbers as people write them on a logarithmic axis: 0.3, 1, 3,000; at `values` if given."""
    ticker: Any = import_module("matplotlib.ticker")
    if values is None:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    else:
        axis.set_major_locator(ticker.FixedLocator(list(values)))
    axis.set_minor_locator(ticker.NullLocator())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
