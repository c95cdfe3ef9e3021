"""The work list: which query rows read which runs of keys, and which partials each row merges.

A work list is flat arrays, so that any backend (a loop, one call per item, one kernel launch for
all) can run it as it stands. An *item* is a set of query rows against one run of consecutive pool
slots; answering it yields one *partial* state per row. Partials are numbered item by item: partial
``p`` is the answer for row ``item_rows[p]``. A second CSR list names, row by row, the partials to
merge.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from foreword.attention._errors import PlanError

Int32 = NDArray[np.int32]


@final
class WorkList:
    """What one step computes, for every layer alike. Arrays are int32 unless said otherwise.

    Items, in an order in which ancestors come before descendants:

    - ``item_ptr [items + 1]``, ``item_rows [partials]``: the rows of item ``i`` are
      ``item_rows[item_ptr[i]:item_ptr[i + 1]]``, ascending; never none.
    - ``item_start [items]``, ``item_length [items]``: its run of pool slots; never empty.
    - ``item_causal [items]`` bool: if set, the item is a square, rows and keys being the same
      tokens, and its j-th row sees the first j + 1 keys. Otherwise every row sees the whole run.

    Rows, each of which has at least one partial:

    - ``row_ptr [rows + 1]``, ``row_partials [partials]``: row ``r`` merges the partials
      ``row_partials[row_ptr[r]:row_ptr[r + 1]]``, ancestors first. A row with one partial needs no
      merge.
    - ``tails [rows]``: the item whose run ends with the row's own token and is read by no other
      row, so that it can grow with the row; -1 for rows without one (prefill, rows others depend
      on).

    ``version`` grows whenever lengths change; everything else is fixed for life. ``cache`` is a
    place for backends to keep what they derive from the list, under keys that begin with their own
    name; it lives as long as the list and is no part of its value.
    """

    __slots__ = (
        "cache",
        "item_causal",
        "item_length",
        "item_ptr",
        "item_rows",
        "item_start",
        "row_partials",
        "row_ptr",
        "rows",
        "tails",
        "version",
    )

    def __init__(
        self,
        rows: int,
        *,
        item_ptr: Int32,
        item_rows: Int32,
        item_start: Int32,
        item_length: Int32,
        item_causal: NDArray[np.bool_],
        tails: Int32,
    ) -> None:
        self.rows = rows
        self.item_ptr = item_ptr
        self.item_rows = item_rows
        self.item_start = item_start
        self.item_length = item_length
        self.item_causal = item_causal
        self.tails = tails
        self.row_partials = np.argsort(item_rows, kind="stable").astype(np.int32)
        self.row_ptr = np.zeros(rows + 1, dtype=np.int32)
        np.cumsum(np.bincount(item_rows, minlength=rows), out=self.row_ptr[1:])
        self.version = 0
        self.cache: dict[str, object] = {}

    def __repr__(self) -> str:
        return (
            f"WorkList(rows={self.rows}, items={self.items}, partials={self.partials}, "
            f"keys_read={self.keys_read}, keys_seen={self.keys_seen})"
        )

    @property
    def items(self) -> int:
        """Number of items."""
        return len(self.item_start)

    @property
    def partials(self) -> int:
        """Number of partial states, one per item and row of it."""
        return len(self.item_rows)

    @property
    def keys_read(self) -> int:
        """Keys the items read, each run counted once however many rows see it. O(items)."""
        return int(self.item_length.sum(dtype=np.int64))

    @property
    def keys_seen(self) -> int:
        """Keys the rows see, summed over rows: what would be read without sharing. O(items)."""
        rows = np.diff(self.item_ptr).astype(np.int64)
        length = self.item_length.astype(np.int64)
        square = length * (length + 1) // 2
        return int(np.where(self.item_causal, square, rows * length).sum())

    @property
    def steady(self) -> bool:
        """Whether :meth:`advance` is possible: every row is a tail of its own."""
        return not (self.tails < 0).any()

    def advance(self) -> None:
        """Move on by one token per row, each behind the last one in its row's own run.

        Mutates lengths and ``version`` and nothing else; O(rows), and nothing to do for no rows. It
        is right for a decode step where nobody joined or left and every new token got the slot
        right behind its predecessor; the list then says what a fresh plan would. Raises
        :class:`PlanError`, unchanged, if some row has no tail to grow.
        """
        if not self.steady:
            row = int(np.argmax(self.tails < 0))
            raise PlanError(
                f"this work list cannot advance: row {row} has no run of its own that could grow. "
                "Only pure decode steps advance; plan the others afresh."
            )
        self.item_length[self.tails] += 1
        self.version += 1

    def tail_slots(self) -> Int32:
        """The slot of each row's own token ``[rows]``, -1 where the row has no tail. O(rows)."""
        ends = self.item_start + self.item_length - 1
        return np.where(self.tails < 0, -1, ends[self.tails]).astype(np.int32)

    def visible(self, row: int) -> Int32:
        """Every slot that `row` sees, in path order, for tests and oracles. O(slots)."""
        slots: list[Int32] = []
        for partial in self.row_partials[self.row_ptr[row] : self.row_ptr[row + 1]].tolist():
            item = int(np.searchsorted(self.item_ptr, partial, side="right")) - 1
            length = int(self.item_length[item])
            if self.item_causal[item]:
                length = partial - int(self.item_ptr[item]) + 1
            start = int(self.item_start[item])
            slots.append(np.arange(start, start + length, dtype=np.int32))
        return np.concatenate(slots) if slots else np.empty(0, dtype=np.int32)

    def check(self) -> None:
        """Raise :class:`PlanError` naming the first broken invariant, if any. O(rows x keys)."""
        counts = np.diff(self.item_ptr)
        _require(len(self.item_ptr) == self.items + 1, "item_ptr has one entry more than items")
        _require(int(self.item_ptr[0]) == 0, "item_ptr begins at 0")
        _require(int(self.item_ptr[-1]) == self.partials, "item_ptr ends at the number of partials")
        _require(bool((counts > 0).all()), "no item is without rows")
        _require(bool((self.item_length > 0).all()), "no run is empty")
        _require(bool((self.item_start >= 0).all()), "no run starts below slot 0")
        for item in range(self.items):
            rows = self.item_rows[self.item_ptr[item] : self.item_ptr[item + 1]]
            _require(bool((np.diff(rows) > 0).all()), f"the rows of item {item} ascend")
            _require(rows[0] >= 0 and rows[-1] < self.rows, f"the rows of item {item} exist")
            if self.item_causal[item]:
                _require(len(rows) == self.item_length[item], f"causal item {item} is a square")
        _require(len(self.row_ptr) == self.rows + 1, "row_ptr has one entry more than rows")
        for row in range(self.rows):
            partials = self.row_partials[self.row_ptr[row] : self.row_ptr[row + 1]]
            _require(
                bool((self.item_rows[partials] == row).all()), f"row {row} merges its partials"
            )
            slots = self.visible(row)
            _require(len(slots) > 0, f"row {row} sees at least one key")
            _require(len(np.unique(slots)) == len(slots), f"row {row} sees no slot twice")
            tail = int(self.tails[row])
            if tail >= 0:
                rows = self.item_rows[self.item_ptr[tail] : self.item_ptr[tail + 1]]
                alone = len(rows) == 1 and rows[0] == row and not self.item_causal[tail]
                _require(alone, f"the tail of row {row} is a dense item of its own")


def _require(holds: bool, invariant: str) -> None:
    if not holds:
        raise PlanError(f"broken work list: it should hold that {invariant}")
