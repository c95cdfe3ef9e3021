"""Places that batches share, first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Seats:
    """Places that are given out in the order in which they were asked for."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        """Wait for so many places; more than there are means all of them."""
        count = min(count, self.total)
        if not self._line and count <= self._free:
            self._free -= count
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((count, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.give(count)  # it came at the same moment
            else:
                self._line.remove((count, place))
                self._serve()
            raise

    def give(self, count: int) -> None:
        """Give back what was taken."""
        self._free += min(count, self.total)
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._free:
            count, place = self._line.popleft()
            if not place.done():
                self._free -= count
                place.set_result(None)
