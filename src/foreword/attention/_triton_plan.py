"""From a work list to tiles: what each program of the GPU kernel does, as flat arrays. Torch-free.

A *tile* is a block of queries (rows times the query heads of one key/value head, packed densely
whatever the group) against a *piece* of an item's run. Pieces end at absolute positions, multiples
of a quantum counted from the root of the path, so that a long run spreads over the device and a row
is cut the same way whoever else is in the batch. A piece costs each of its rows one partial in
float32; a second CSR list names, row by row, the partials to merge.

Block size and quantum depend on nothing but how many queries read the run: few queries make small
blocks, and runs read by so many that blocks of queries alone fill a device are cut less often,
because there the partials would weigh more than the keys.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from foreword.attention._worklist import Int32, WorkList

BLOCKS = (16, 32, 64, 128)
"""Queries per tile: the buckets of tiles, each a launch of its own."""

QUANTUM = 512
"""Keys between two cuts of a run; a power of two. Runs with many readers have a multiple of it."""

# The columns of the table of tiles. Lengths come first, being all that changes when rows advance.
LENGTH, START, SHIFT, ROWS, FIRST, COUNT, PARTIAL = range(7)
COLUMNS = 7

_ALL = 1 << 30  # as a shift: every row sees the whole piece
_FILLED = 32  # blocks of queries, over all key/value heads, from which runs are cut less often
_LONGEST = 1 << 20  # the largest quantum

_Int64 = NDArray[np.int64]


class _Pieces(NamedTuple):
    """Runs cut at absolute positions; the pieces of an item are neighbours, in order."""

    per_item: _Int64  # [items]
    item: _Int64  # [pieces], as the others
    offset: _Int64  # of the first key within the run
    length: _Int64


@final
class TilePlan:
    """The tiles of one work list for given heads, at most `largest` queries each, and the merges.

    - ``tiles [7, tiles]``: in order of buckets, longest first within each. ``LENGTH`` and ``START``
      are the piece's keys and first slot; the item's j-th row sees the first ``min(LENGTH, j +
      SHIFT)`` of them. ``ROWS`` is where the item's rows begin in ``rows``; the tile's queries are
      ``FIRST .. FIRST + COUNT`` of the item, query ``x`` being head ``x % group`` of row ``x //
      group``. ``PARTIAL`` is the partial of the item's row 0.
    - ``buckets [4]``: tiles per entry of ``BLOCKS``.
    - ``rows [partials]``: twice the work list's ``item_rows``, plus one for rows with one partial.
    - ``merge_ptr [rows + 1]``, ``merge [entries]``: the partials of each row, in path order. A row
      with a single entry is not merged: its tiles write the result itself.
    - ``partials``: how many partials there are room for. ``end``: one behind the last slot read.

    Valid as long as :meth:`refresh` says so.
    """

    __slots__ = (
        "_growing",
        "_limit",
        "_offset",
        "_tail",
        "buckets",
        "end",
        "merge",
        "merge_ptr",
        "partials",
        "rows",
        "tiles",
        "version",
    )

    def __init__(
        self, work: WorkList, kv_heads: int, group: int, largest: int = BLOCKS[-1]
    ) -> None:
        sizes = np.diff(work.item_ptr).astype(np.int64)
        bucket, quantum = _bands(sizes * group, kv_heads, largest)
        begin = _positions(work)
        pieces, limit = _cut(begin, work.item_length, quantum)
        merge_ptr, merge, base, self.partials = _merges(work, sizes, pieces)

        block = np.array(BLOCKS)[bucket]
        blocks = -(-sizes * group // block)
        piece, part = _expand(blocks[pieces.item])
        item = pieces.item[piece]
        offset = pieces.offset[piece]
        first = part * block[item]
        count = np.minimum(block[item], sizes[item] * group - first)
        shift = np.where(work.item_causal[item], 1 - offset, _ALL)
        # The keys that the tile's last row sees, the most of any: what the tile costs.
        reach = np.minimum(pieces.length[piece], (first + count - 1) // group + shift)

        tiles = np.empty((COLUMNS, len(piece)), dtype=np.int32)
        tiles[LENGTH] = pieces.length[piece]
        tiles[START] = work.item_start[item] + offset
        tiles[SHIFT] = shift
        tiles[ROWS] = work.item_ptr[item]
        tiles[FIRST] = first
        tiles[COUNT] = count
        tiles[PARTIAL] = base[piece]
        order = np.lexsort((-reach, bucket[item]))
        order = order[reach[order] > 0]
        self.tiles: Int32 = np.ascontiguousarray(tiles[:, order])
        self.buckets: Int32 = np.bincount(bucket[item[order]], minlength=len(BLOCKS)).astype(
            np.int32
        )
        self.rows: Int32 = 2 * work.item_rows + (np.diff(merge_ptr) == 1)[work.item_rows]
        self.merge_ptr: Int32 = merge_ptr
        self.merge: Int32 = merge

        growing = np.zeros(work.items, dtype=np.bool_)
        growing[work.tails[work.tails >= 0]] = True
        last = np.cumsum(pieces.per_item) - 1
        ends = growing[item] & (piece == last[item])
        self._growing = np.flatnonzero(ends[order])
        self._tail = item[order][self._growing]
        self._offset = offset[order][self._growing]
        self._limit = limit[self._tail]
        self.end = int((work.item_start + work.item_length).max(initial=0))
        self.version = work.version

    @property
    def used(self) -> list[int]:
        """The buckets that have tiles."""
        used: list[int] = self.buckets.nonzero()[0].tolist()
        return used

    def refresh(self, work: WorkList) -> bool:
        """Take over the lengths that `work` has advanced to: whether the plan is still valid.

        Mutates the ``LENGTH`` of growing tiles; O(rows), nothing if `work` has not moved. False,
        with nothing changed, once a run has outgrown its last piece: then plan afresh.
        """
        if self.version == work.version:
            return True
        lengths = work.item_length[self._tail]
        if (lengths > self._limit).any():
            return False
        self.tiles[LENGTH, self._growing] = lengths - self._offset
        self.end = int((work.item_start + work.item_length).max(initial=0))
        self.version = work.version
        return True


def _bands(queries: _Int64, kv_heads: int, largest: int) -> tuple[_Int64, _Int64]:
    """Bucket and quantum of items by how many queries read them, per key/value head.

    A block of M queries over L keys moves ``4 d L`` bytes of 16-bit keys and values and ``8 d M``
    bytes of partials, written and read: with blocks enough to go round, the quantum grows with
    their number. The largest blocks pay from two full ones on.
    """
    bucket = np.searchsorted((BLOCKS[0], BLOCKS[1], 2 * BLOCKS[3] - 1), queries)
    bucket = np.minimum(bucket, BLOCKS.index(largest))
    blocks = -(-queries // np.array(BLOCKS)[bucket])
    doublings = np.frexp(np.maximum(blocks * kv_heads // _FILLED, 1))[1] - 1
    return bucket, np.minimum(QUANTUM << doublings.astype(np.int64), _LONGEST)


def _positions(work: WorkList) -> _Int64:
    """Where each item's run begins on the path of its rows ``[items]``: keys seen before it."""
    item = np.repeat(np.arange(work.items), np.diff(work.item_ptr))[work.row_partials]
    length = work.item_length[item].astype(np.int64)
    before = np.cumsum(length) - length
    before -= np.repeat(before[work.row_ptr[:-1]], np.diff(work.row_ptr))
    position = np.zeros(work.items, dtype=np.int64)
    position[item] = before
    return position


def _cut(begin: _Int64, length: Int32, quantum: _Int64) -> tuple[_Pieces, _Int64]:
    """Runs cut at multiples of their quantum, and how long each can grow without another cut.

    A cut that would leave less than half a quantum at either end is not made.
    """
    half = quantum // 2
    first = -(-(begin + half) // quantum)
    cuts = np.maximum((begin + length - half) // quantum - first + 1, 0)
    limit = (first + cuts) * quantum + half - begin - 1
    item, nth = _expand(cuts + 1)
    offset = np.where(nth > 0, (first[item] + nth - 1) * quantum[item] - begin[item], 0)
    last = nth == cuts[item]
    end = np.where(last, length[item], (first[item] + nth) * quantum[item] - begin[item])
    return _Pieces(cuts + 1, item, offset, end - offset), limit


def _merges(work: WorkList, sizes: _Int64, pieces: _Pieces) -> tuple[Int32, Int32, _Int64, int]:
    """The rows' CSR list, each piece's first partial, and the number of partials.

    A row of a causal item sees some of its pieces only. Items none of whose rows merges anything
    get no partials.
    """
    head = np.cumsum(pieces.per_item) - pieces.per_item  # [items], the first piece of each
    item = np.repeat(np.arange(work.items), sizes)
    nth = np.arange(work.partials) - work.item_ptr[item]
    # Of a causal item's pieces, its j-th row sees those that begin at or before key j.
    begins = (pieces.item << 32) + pieces.offset
    within = np.searchsorted(begins, (item << 32) + nth, side="right") - head[item]
    seen = np.where(work.item_causal[item], within, pieces.per_item[item])
    counts = np.bincount(work.item_rows, weights=seen, minlength=work.rows).astype(np.int64)
    merge_ptr = np.zeros(work.rows + 1, dtype=np.int32)
    np.cumsum(counts, out=merge_ptr[1:])

    merged = np.logical_or.reduceat(counts[work.item_rows] > 1, work.item_ptr[:-1])
    room = (sizes * merged)[pieces.item]
    base = np.cumsum(room) - room
    entry, piece = _expand(seen[work.row_partials])
    partial = work.row_partials[entry]
    merge = base[head[item[partial]] + piece] + nth[partial]
    return merge_ptr, merge.astype(np.int32), base, int(room.sum())


def _expand(counts: _Int64) -> tuple[_Int64, _Int64]:
    """For each of ``counts.sum()`` things: which entry it belongs to, and its number there."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
