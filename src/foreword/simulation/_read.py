"""Reading traces as they are published: block hashes, or lengths and times only."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from foreword._errors import ParameterError
from foreword.simulation._trace import Trace, TraceError, TraceRequest, fault

LENGTHS_UNIT = 16
"""Tokens in a block of a trace that says nothing about blocks."""
MOONCAKE_UNIT = 512


def read_trace(path: str | Path, *, format: str = "auto", unit: int | None = None) -> Trace:
    """A trace from a file.

    `mooncake`: JSON lines with timestamp (ms), input_length, output_length, hash_ids (one for
    each block of 512 tokens), perhaps tenant.
    `azure`: CSV with TIMESTAMP (date and time), ContextTokens, GeneratedTokens; nothing is shared.
    `vtc`: JSON lines with req_time (s), prompt_len, output_len, adapter_dir (the tenant); nothing
    is shared.

    Times count from the earliest request of an `azure` file, and from 0 in the others.

    Args:
        path: the file.
        format: one of these, or `auto`: told by the first line.
        unit: tokens in a block; default 512 for `mooncake`, 16 where nothing is shared.

    Raises:
        TraceError: the file cannot be read as a trace; names the line, the field and the way out.
        ParameterError: no such format, or an impossible unit.
    """
    file = Path(path)
    if format not in ("auto", *_READERS):
        raise ParameterError(f"no trace format {format!r}: choose auto, {', '.join(_READERS)}")
    if unit is not None and unit < 1:
        raise ParameterError(f"a block of {unit} tokens: unit must be at least 1")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read trace {str(file)!r}: {error}") from None
    if format == "auto":
        format = _guess(file, lines)
    reader, default = _READERS[format]
    size = default if unit is None else unit
    requests = []
    for number, request in reader(file, lines, size):
        wrong = fault(request, size)
        if wrong:
            raise TraceError(f"{file}, line {number}: {wrong}")
        requests.append(request)
    if not requests:
        raise TraceError(f"{file} has no requests: give it at least one line of them")
    return Trace(file.stem, size, tuple(requests))


def _guess(file: Path, lines: list[str]) -> str:
    first = next((line for line in lines if line.strip()), "")
    for name, field in (("mooncake", '"hash_ids"'), ("vtc", '"prompt_len"'), ("azure", "Context")):
        if field in first:
            return name
    if first.lstrip().startswith("{"):
        return "mooncake"  # its reader says which field is missing
    raise TraceError(
        f"{file}: the first line is of no known format; say with format which of "
        f"{', '.join(_READERS)} it is"
    )


def _mooncake(file: Path, lines: list[str], unit: int) -> Iterator[tuple[int, TraceRequest]]:
    for number, record in _json_lines(file, lines):
        field = _Fields(file, number, record)
        ids = field.get("hash_ids")
        if not isinstance(ids, list) or not all(type(each) is int for each in ids):
            raise field.error("hash_ids", ids, "a list of whole numbers, one for each block")
        request = TraceRequest(
            arrival=field.number("timestamp") / 1000,
            path=tuple(ids),
            tokens=field.count("input_length"),
            output=field.count("output_length"),
            tenant=str(record.get("tenant", "")),
        )
        yield number, request


def _vtc(file: Path, lines: list[str], unit: int) -> Iterator[tuple[int, TraceRequest]]:
    fresh = _Fresh(unit)
    for number, record in _json_lines(file, lines):
        field = _Fields(file, number, record)
        tokens = field.count("prompt_len")
        request = TraceRequest(
            arrival=field.number("req_time"),
            path=fresh.blocks(tokens),
            tokens=tokens,
            output=field.count("output_len"),
            tenant=str(field.get("adapter_dir")),
        )
        yield number, request


def _azure(file: Path, lines: list[str], unit: int) -> Iterator[tuple[int, TraceRequest]]:
    fresh = _Fresh(unit)
    rows = csv.DictReader(lines)
    found = []
    for row in rows:
        field = _Fields(file, rows.line_num, row)
        found.append((field.moment("TIMESTAMP"), rows.line_num, field))
    start = min((moment for moment, _, _ in found), default=0.0)
    for moment, number, field in found:
        tokens = field.count("ContextTokens")
        output = field.count("GeneratedTokens")
        arrival = round(moment - start, 7)
        yield number, TraceRequest(arrival, fresh.blocks(tokens), tokens, output)


class _Fresh:
    """Block ids that nobody else has."""

    def __init__(self, unit: int) -> None:
        self._unit = unit
        self._next = 0

    def blocks(self, tokens: int) -> tuple[int, ...]:
        count = max(0, -(-tokens // self._unit))
        self._next += count
        return tuple(range(self._next - count, self._next))


class _Fields:
    """The fields of one line, with errors that say where they are."""

    def __init__(self, file: Path, number: int, record: dict[str, Any]) -> None:
        self._file = file
        self._number = number
        self._record = record

    def get(self, name: str) -> Any:
        value = self._record.get(name)
        if value is None:
            has = ", ".join(str(key) for key in self._record) or "nothing"
            raise TraceError(
                f"{self._file}, line {self._number}: no field {name!r} (there is {has}); "
                "if the file has another format, say so with format"
            )
        return value

    def number(self, name: str) -> float:
        value = self.get(name)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or not isfinite(number):
            raise self.error(name, value, "a number")
        return number

    def count(self, name: str) -> int:
        number = self.number(name)
        if number != int(number) or number < 1:
            raise self.error(name, self.get(name), "a whole number of tokens, at least 1")
        return int(number)

    def moment(self, name: str) -> float:
        """Seconds since 1970 of a date and time, which may have any number of decimals."""
        value = str(self.get(name)).strip()
        whole, _, decimals = value.partition(".")
        try:
            seconds = (datetime.fromisoformat(whole) - datetime(1970, 1, 1)).total_seconds()
            return seconds + float(f"0.{decimals or 0}")
        except (TypeError, ValueError):
            raise self.error(name, value, "a time such as 2023-11-16 18:17:03.97996") from None

    def error(self, name: str, value: object, wanted: str) -> TraceError:
        shown = repr(value)
        shown = shown if len(shown) < 60 else f"{shown[:57]}..."
        return TraceError(
            f"{self._file}, line {self._number}: {name} is {shown}, and must be {wanted}"
        )


def _json_lines(file: Path, lines: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{file}, line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise TraceError(f"{file}, line {number} is no JSON object with named fields")
        yield number, record


_Reader = Callable[[Path, "list[str]", int], Iterator["tuple[int, TraceRequest]"]]

_READERS: dict[str, tuple[_Reader, int]] = {
    "mooncake": (_mooncake, MOONCAKE_UNIT),
    "azure": (_azure, LENGTHS_UNIT),
    "vtc": (_vtc, LENGTHS_UNIT),
}
