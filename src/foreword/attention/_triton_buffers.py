"""Where a plan lies on the device: one packed int32 buffer at an address that stays.

A CUDA graph remembers addresses and launch sizes. So the buffer is larger than the plan, its
sections begin where its capacity says, and what changes from plan to plan is read from it on the
device. Plans go up in a single copy from pinned memory, lengths alone in a smaller one.
"""

from __future__ import annotations

from typing import NamedTuple, final

import numpy as np
import torch

from foreword.attention._triton_plan import BLOCKS, COLUMNS, LENGTH, TilePlan
from foreword.attention._worklist import Int32

HEADER = 16
"""Numbers before the table of tiles: per bucket its first tile and their count, then the rows."""

ROWS = 2 * len(BLOCKS)
"""Where in the header the number of rows stands."""

_SMALLEST = 64  # so that sections begin at multiples of 16 numbers, as aligned loads want


class Capacity(NamedTuple):
    """What fits into a buffer, and in front of which number each of its sections begins.

    The sections: the header; the table of tiles, column by column; the rows of items; the rows'
    ``merge_ptr``, with one entry to spare; their ``merge``.
    """

    tiles: int
    item_rows: int
    rows: int
    merge: int
    partials: int

    @property
    def rows_at(self) -> int:
        """Where the rows of items begin."""
        return HEADER + COLUMNS * self.tiles

    @property
    def merge_ptr_at(self) -> int:
        """Where ``merge_ptr`` begins."""
        return self.rows_at + self.item_rows

    @property
    def merge_at(self) -> int:
        """Where ``merge`` begins."""
        return self.merge_ptr_at + self.rows

    @property
    def numbers(self) -> int:
        """How many numbers the buffer holds."""
        return self.merge_at + self.merge

    def grown(self, plan: TilePlan) -> Capacity:
        """The smallest capacity that holds `plan` and no less than this one, in powers of two."""
        needed = (
            plan.tiles.shape[1],
            len(plan.rows),
            len(plan.merge_ptr),
            len(plan.merge),
            plan.partials,
        )
        return Capacity(
            *(max(old, 1 << (new - 1).bit_length()) for old, new in zip(self, needed, strict=True))
        )


@final
class PlanBuffer:
    """Device memory for one plan at a time.

    Its address and capacity stay while ``generation`` stays. A CUDA graph that was captured over
    this buffer may be replayed for every plan loaded since, as long as the generation is the one it
    was captured at. `capacity` is how much to begin with: what a graph is to serve without growing.
    """

    def __init__(self, device: torch.device | str, capacity: Capacity | None = None) -> None:
        self.device = torch.device(device)
        self.capacity = capacity or Capacity(*[_SMALLEST] * 5)
        self.numbers = torch.empty(self.capacity.numbers, dtype=torch.int32, device=device)
        self.generation = 0
        self._plan: TilePlan | None = None
        self._version = -1

    def holds(self, plan: TilePlan) -> bool:
        """Whether it shows `plan` with its present lengths."""
        return self._plan is plan and self._version == plan.version

    def load(self, plan: TilePlan) -> None:
        """Make the buffer show `plan` in place of whatever it showed. Does not wait for the device.

        Copies nothing if it :meth:`holds` the plan, lengths alone if nothing else has changed.
        Grows, with a new ``generation``, if `plan` does not fit.
        """
        if self.holds(plan):
            return
        if self._plan is plan:
            self._send(HEADER, plan.tiles[LENGTH])
        else:
            capacity = self.capacity.grown(plan)
            if capacity != self.capacity:
                self.capacity = capacity
                self.numbers = torch.empty(capacity.numbers, dtype=torch.int32, device=self.device)
                self.generation += 1
            self._send(0, _pack(plan, capacity))
        self._plan, self._version = plan, plan.version

    def _send(self, at: int, numbers: Int32) -> None:
        # The allocator of pinned memory keeps a block until the copies out of it are done.
        staging = torch.empty(
            len(numbers), dtype=torch.int32, pin_memory=self.device.type == "cuda"
        )
        staging.numpy()[:] = numbers
        self.numbers[at : at + len(numbers)].copy_(staging, non_blocking=True)


def _pack(plan: TilePlan, capacity: Capacity) -> Int32:
    """The whole buffer. What lies between the sections is never read."""
    numbers = np.zeros(capacity.numbers, dtype=np.int32)
    ends = np.cumsum(plan.buckets)
    numbers[0:ROWS:2] = ends - plan.buckets
    numbers[1:ROWS:2] = plan.buckets
    numbers[ROWS] = len(plan.merge_ptr) - 1
    table = numbers[HEADER : capacity.rows_at].reshape(COLUMNS, capacity.tiles)
    table[:, : plan.tiles.shape[1]] = plan.tiles
    for at, section in (
        (capacity.rows_at, plan.rows),
        (capacity.merge_ptr_at, plan.merge_ptr),
        (capacity.merge_at, plan.merge),
    ):
        numbers[at : at + len(section)] = section
    return numbers
