"""Where output goes: results to stdout, talk to stderr; plain in a pipe, dressed on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

debug = False
"""Whether --debug was given, before or after the verb."""


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object on one line of stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def note(text: str, *, quiet: bool = False) -> None:
    """Talk: a line on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: drawn on a terminal, aligned columns elsewhere. The first column names."""
    if title:
        print(title)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table()
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def one_line(text: str, width: int) -> str:
    """`text` on one line of at most `width` characters, line breaks and tabs written out."""
    # Only what can fit is looked at: a node's text may be very long.
    shown = text[: width + 1]
    for char, escape in (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        shown = shown.replace(char, escape)
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def human_bytes(size: float) -> str:
    """A size as people read it, in powers of 1000: 950 B, 25.6 kB, 1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
