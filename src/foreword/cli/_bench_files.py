"""Where a benchmark's result goes: a JSON file and, beside it, its plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foreword._errors import ParameterError
from foreword.cli import _console


def check_out(out: Path | None) -> None:
    """Refuse a place without a directory, before anything is measured."""
    if out is not None and not out.is_dir() and not out.parent.is_dir():
        raise ParameterError(f"no directory {str(out.parent)!r} for the result: make it first")


def write_result(
    result: dict[str, Any], out: Path, *, quiet: bool, text: str | None = None
) -> None:
    """Write a result to the file `out`, or under a name of its own to the directory `out`.

    `text` is the file's content where the result has a form of its own; else it is plain JSON.
    Plots that cannot be drawn cost a remark, no more: hours may lie behind the result.
    """
    from foreword.bench import PlotError, default_name, write_plots

    path = out / default_name(result) if out.is_dir() else out
    if text is None:
        text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8")
    _console.note(f"wrote {path}", quiet=quiet)
    try:
        for plotted in write_plots(result, path.parent, path.stem):
            _console.note(f"wrote {plotted}", quiet=quiet)
    except PlotError as error:
        _console.note(f"no plots: {error}", quiet=quiet)
