"""From a tree of spans to a work list: who reads what, each shared run once.

The planner numbers the rows in depth-first order of the tree, privately: the rows at or below a
span are then one interval of that order, and two sets of rows are the same set iff their intervals
are equal. Around that one idea it emits an item per run, joins neighbours that the same rows read,
and folds short runs into their children where that moves fewer bytes. Torch-free, and linear in
spans, runs and partials.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foreword.attention._errors import PlanError
from foreword.attention._worklist import Int32, WorkList


class Span(NamedTuple):
    """A stretch of tokens in a tree, as far as one step can see it.

    - ``parent``: index of the span above, which comes earlier in the list; -1 for a root.
    - ``runs``: (slot, length) pairs that hold the span's visible tokens in order, the tokens of
      this step included. Runs of length 0 are skipped.
    - ``fresh``: how many of those tokens, the last ones, are computed in this step, by rows
      ``first_row .. first_row + fresh - 1``; each sees all ancestors, the span up to itself, and
      itself.
    - ``readers``: rows that see the whole span and its ancestors but add nothing that others see
      (the last token of a wholly cached prompt, computed again for its logits).
    """

    parent: int
    runs: tuple[tuple[int, int], ...]
    fresh: int = 0
    first_row: int = 0
    readers: tuple[int, ...] = ()


def plan(spans: Sequence[Span], rows: int, *, group: int) -> WorkList:
    """Plan one step: every row of the batch against everything it may see. Pure.

    `spans` is a forest, parents before children; `rows` the number of query rows, numbered by the
    caller in any way, each named by exactly one span; `group` the number of query heads per
    key/value head, which weighs partial states against keys in the folding rule. Depth-first
    numbering gives the fastest lists: rows that sit together are sliced, not gathered. No rows make
    an empty list.

    The result is valid until somebody joins, leaves or is split, or a span gets a new run; while
    all that happens is one more token per row, :meth:`WorkList.advance` keeps it so.

    Raises :class:`PlanError` for a child before its parent, more fresh tokens than tokens, a row
    that is named never or twice, and a row with nothing to see.
    """
    if group < 1:
        raise PlanError(f"group is the number of query heads per key/value head, got {group}")
    bounds, order = _depth_first(spans, rows)
    items, last_items = _emit(spans, bounds)
    _fold(items, group)
    return _assemble(items, last_items, order)


class _Item:
    """A run against the rows ``order[low:high]``, less those that read it in a child's item by
    folding."""

    __slots__ = ("causal", "folded", "high", "length", "low", "start")

    def __init__(self, low: int, high: int, start: int, length: int, causal: bool) -> None:
        self.low = low
        self.high = high
        self.start = start
        self.length = length
        self.causal = causal
        self.folded: tuple[int, int] | None = None

    def intervals(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The rows that are left, as two intervals of which either may be empty."""
        a, b = self.folded or (self.high, self.high)
        return (self.low, a), (b, self.high)


def _depth_first(spans: Sequence[Span], rows: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Each span's interval ``[low, high)`` in depth-first order, and the rows in that order.

    Within its interval a span's fresh rows come first, then its readers, then the spans below.
    """
    size = [span.fresh + len(span.readers) for span in spans]
    total = sum(size)
    for index in range(len(spans) - 1, -1, -1):
        _check_span(index, spans[index])
        if spans[index].parent >= 0:
            size[spans[index].parent] += size[index]

    order = [-1] * total
    bounds: list[tuple[int, int]] = []
    below: list[int] = []  # where the next child of each span begins
    root = 0
    for span, count in zip(spans, size, strict=True):
        if span.parent < 0:
            low = root
            root += count
        else:
            low = below[span.parent]
            below[span.parent] += count
        bounds.append((low, low + count))
        own = low + span.fresh
        order[low:own] = range(span.first_row, span.first_row + span.fresh)
        order[own : own + len(span.readers)] = span.readers
        below.append(own + len(span.readers))
    if sorted(order) != list(range(rows)):
        raise PlanError(_row_fault(order, rows))
    return bounds, order


def _check_span(index: int, span: Span) -> None:
    tokens = 0
    for start, length in span.runs:
        if start < 0 or length < 0:
            raise PlanError(f"span {index} has an impossible run: slot {start}, length {length}")
        tokens += length
    if not 0 <= span.fresh <= tokens:
        raise PlanError(
            f"span {index} has {tokens} tokens, so {span.fresh} of them cannot be fresh"
        )
    if not -1 <= span.parent < index:
        raise PlanError(
            f"span {index} names span {span.parent} as its parent, which must come before it"
        )


def _row_fault(order: list[int], rows: int) -> str:
    seen: set[int] = set()
    for row in order:
        if not 0 <= row < rows:
            return f"a span names row {row}, but the batch has {rows} rows"
        if row in seen:
            return f"row {row} is named twice; every row belongs to exactly one span"
        seen.add(row)
    missing = min(set(range(rows)) - seen)
    return f"row {missing} belongs to no span; every row needs one"


def _emit(
    spans: Sequence[Span], bounds: list[tuple[int, int]]
) -> tuple[list[_Item], dict[int, _Item]]:
    """Items of all spans, ancestors first, and the growing item of each lone row (by its
    position)."""
    items: list[_Item] = []
    newest: dict[tuple[int, int], _Item] = {}  # the last dense item of each set of rows
    tails: dict[int, _Item] = {}

    def dense(low: int, high: int, start: int, length: int) -> None:
        if low == high:
            return
        item = newest.get((low, high))
        if item is not None and item.start + item.length == start:
            item.length += length
            return
        item = newest[low, high] = _Item(low, high, start, length, False)
        items.append(item)

    for span, (low, high) in zip(spans, bounds, strict=True):
        if low == high:
            continue
        past = sum(length for _, length in span.runs) - span.fresh
        row = low  # position of the row that computes the next fresh token
        for start, length in span.runs:
            old = min(past, length)
            past -= old
            if old:
                dense(low, high, start, old)
            start, new = start + old, length - old
            if new == 1:
                # One token is seen by its own row and by every row behind it: no triangle needed.
                dense(row, high, start, 1)
            elif new > 1:
                items.append(_Item(row, row + new, start, new, True))
                dense(row + new, high, start, new)
            row += new
        if span.fresh == 1 and high - low == 1:
            tails[low] = newest[low, high]
    return items, tails


def _fold(items: list[_Item], group: int) -> None:
    """Fold parents' short runs into children where that moves fewer bytes. Mutates `items`.

    A parent's run of length l that ends where the run of a child group of s rows begins can be read
    by the child's item instead. Per key/value head of dimension d that costs at most 4 l d bytes,
    the run read once more (nothing, if no other row is left to read it), and saves the group one
    partial each, written and read in float32: about 8 d s g bytes. So fold iff ``l * extra_reads <
    2 * s * g``.
    """
    follower = {item.start: item for item in items if not item.causal}
    for item in items:
        if item.causal:
            continue
        child = follower.get(item.start + item.length)
        if child is None or child.folded or child.low < item.low or child.high > item.high:
            continue
        rows = child.high - child.low
        left = item.high - item.low - rows
        extra_reads = 1 if left else 0
        if item.length * extra_reads < 2 * rows * group:
            del follower[child.start]
            child.start -= item.length
            child.length += item.length
            item.folded = (child.low, child.high)


def _assemble(items: list[_Item], tails: dict[int, _Item], order: list[int]) -> WorkList:
    rows = len(order)
    positions = np.array(order, dtype=np.int32)
    kept: dict[_Item, int] = {}
    pieces: list[Int32] = []
    counts: list[int] = []
    for item in items:
        count = 0
        for low, high in item.intervals():
            if low < high:
                pieces.append(positions[low:high])
                count += high - low
        if count:
            kept[item] = len(counts)
            counts.append(count)

    item_ptr = np.zeros(len(counts) + 1, dtype=np.int32)
    np.cumsum(counts, out=item_ptr[1:])
    item_rows = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int32)
    # Rows ascend within each item however the caller numbered them: one sort over (item, row).
    keys = np.repeat(np.arange(len(counts), dtype=np.int64) * rows, counts) + item_rows
    if (keys[1:] < keys[:-1]).any():
        keys.sort()
        item_rows = (keys % rows).astype(np.int32)

    row_tails = np.full(rows, -1, dtype=np.int32)
    for position, item in tails.items():
        # A run that ends where another of the same row begins was folded: it cannot grow.
        row_tails[order[position]] = kept.get(item, -1)
    work = WorkList(
        rows,
        item_ptr=item_ptr,
        item_rows=item_rows,
        item_start=np.array([item.start for item in kept], dtype=np.int32),
        item_length=np.array([item.length for item in kept], dtype=np.int32),
        item_causal=np.array([item.causal for item in kept], dtype=np.bool_),
        tails=row_tails,
    )
    blind = np.flatnonzero(np.diff(work.row_ptr) == 0)
    if len(blind):
        raise PlanError(f"row {blind[0]} sees nothing: its span and all above are empty")
    return work
