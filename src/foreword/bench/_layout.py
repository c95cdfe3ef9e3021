"""How results are laid out as text: a median with its spread, rows in columns."""

from __future__ import annotations

from typing import Any


def value_text(value: dict[str, Any], digits: int) -> str:
    half = (value["max"] - value["min"]) / 2
    text = f"{value['median']:,.{digits}f}"
    return text if len(value["samples"]) == 1 else f"{text} ± {half:,.{digits}f}"


def aligned(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first, *rest = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
