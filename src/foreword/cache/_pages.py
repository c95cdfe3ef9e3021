"""The page allocator: long runs first, so that a run is one kernel call.

Free pages are kept as *extents*, ranges of consecutive pages, in two kinds: **open** ones, and
**reserved** ones that lie right behind a holder who expects to grow. Reservation is soft: others
avoid reserved pages while open ones are left; then they take them from the far end, so that the
holder keeps as much as possible of its own run. A reservation ends when it is used up,
relinquished, or when the page in front of it is freed.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from foreword.cache._errors import OutOfPages
from foreword.cache._runs import PageRange


class _Extents:
    """Free extents of one kind, findable by start, by end and by size."""

    __slots__ = ("_sizes", "ends", "pages", "starts")

    def __init__(self) -> None:
        self.starts: dict[int, int] = {}  # start -> length
        self.ends: dict[int, int] = {}  # end -> start
        self.pages = 0
        self._sizes: list[tuple[int, int]] = []  # (length, start), sorted

    def add(self, start: int, length: int) -> None:
        if length:
            self.starts[start] = length
            self.ends[start + length] = start
            self.pages += length
            insort(self._sizes, (length, start))

    def remove(self, start: int) -> int:
        length = self.starts.pop(start)
        del self.ends[start + length]
        self.pages -= length
        del self._sizes[bisect_left(self._sizes, (length, start))]
        return length

    def best_fit(self, length: int) -> int | None:
        """Start of the smallest extent of at least `length` pages, the lowest among equals."""
        at = bisect_left(self._sizes, (length, 0))
        return self._sizes[at][1] if at < len(self._sizes) else None

    def largest(self) -> int:
        return self._sizes[-1][1]


class PageAllocator:
    """Gives out the pages `1 .. num_pages - 1`; page 0 is the scratch page and never given out.

    Every call costs O(log E) comparisons and one memory move for E free extents, a few
    microseconds at 100,000 pages.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages is {num_pages}: at least 1, the scratch page, is needed")
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}: a page holds at least 1 token")
        self.num_pages = num_pages
        self.page_size = page_size
        self._open = _Extents()
        self._reserved = _Extents()
        self._used = bytearray(num_pages)  # 1 where given out
        self._open.add(1, num_pages - 1)

    @property
    def free_pages(self) -> int:
        """Pages that can be given out, reserved ones among them."""
        return self._open.pages + self._reserved.pages

    @property
    def used_pages(self) -> int:
        """Pages that are given out; the scratch page does not count."""
        return self.num_pages - 1 - self.free_pages

    @property
    def reserved_pages(self) -> int:
        """Free pages that are softly reserved."""
        return self._reserved.pages

    def free_behind(self, page: int) -> int:
        """How many consecutive pages are free right behind `page`. Does not mutate."""
        first = self._reserved.starts.get(page + 1, 0)
        return first + self._open.starts.get(page + 1 + first, 0)

    def allocate(self, n: int, room: int = 0, after: int | None = None) -> list[PageRange]:
        """Give out `n` pages in as few ranges as the open extents allow.

        Args:
            n: pages to give out; 0 gives `[]` and changes nothing.
            room: pages the holder expects to need later. An extent with that many more is
                preferred, and up to `room` pages behind the last range are softly reserved.
            after: try first to go on right behind this page.

        Raises:
            OutOfPages: fewer than `n` pages are free; nothing is changed.
        """
        if n < 0 or room < 0:
            raise ValueError(f"cannot allocate {n} pages with room for {room}: both must be >= 0")
        if n > self.free_pages:
            raise OutOfPages(n, self.free_pages)
        ranges: list[PageRange] = []
        if after is not None and n:
            taken = self._take_behind(after, n, room)
            if taken:
                ranges.append(PageRange(after + 1, taken))
                n -= taken
        while n:
            taken_range = self._take_open(n, room) if self._open.pages else self._take_reserved(n)
            ranges.append(taken_range)
            n -= taken_range.length
        return ranges

    def free(self, ranges: Iterable[PageRange]) -> None:
        """Take pages back.

        Raises:
            ValueError: a page is not given out; nothing is changed.
        """
        ranges = [given for given in ranges if given.length]
        for at, (start, length) in enumerate(ranges):
            if length < 0 or start < 1 or self._used.count(1, start, start + length) != length:
                for begin, count in ranges[:at]:
                    self._used[begin : begin + count] = b"\1" * count
                raise ValueError(
                    f"cannot free pages {start} to {start + length - 1}: not all are given out"
                )
            self._used[start : start + length] = bytes(length)
        for start, length in ranges:
            self._merge(start, start + length)

    def relinquish(self, page: int) -> None:
        """End the reservation right behind `page`, if there is one."""
        length = self._reserved.starts.get(page + 1)
        if length is not None:
            self._reserved.remove(page + 1)
            self._merge(page + 1, page + 1 + length)

    def _merge(self, start: int, end: int) -> None:
        """Make `[start, end)` open, as one extent with its free neighbours.

        A reserved extent behind it has just lost its holder and becomes open too; one in front of
        it still has its own.
        """
        if end in self._reserved.starts:
            end += self._reserved.remove(end)
        if end in self._open.starts:
            end += self._open.remove(end)
        if start in self._open.ends:
            start = self._open.ends[start]
            self._open.remove(start)
        self._open.add(start, end - start)

    def _take_behind(self, page: int, n: int, room: int) -> int:
        """Take up to `n` pages right behind `page`; returns how many there were."""
        taken = 0
        while taken < n:
            start = page + 1 + taken
            if start in self._reserved.starts:
                length = self._reserved.remove(start)
                got = min(n - taken, length)
                self._reserved.add(start + got, length - got)
                self._used[start : start + got] = b"\1" * got
            elif start in self._open.starts:
                got = self._take_front(start, n - taken, room)
            else:
                break
            taken += got
        return taken

    def _take_open(self, n: int, room: int) -> PageRange:
        """Take up to `n` pages from the best open extent."""
        start = self._open.best_fit(n + room)
        if start is None:
            start = self._open.largest()
        return PageRange(start, self._take_front(start, n, room))

    def _take_front(self, start: int, n: int, room: int) -> int:
        """Take up to `n` pages from an open extent's front and reserve `room` behind them."""
        length = self._open.remove(start)
        got = min(n, length)
        kept = min(room, length - got)
        self._used[start : start + got] = b"\1" * got
        self._reserved.add(start + got, kept)
        self._open.add(start + got + kept, length - got - kept)
        return got

    def _take_reserved(self, n: int) -> PageRange:
        """Take up to `n` pages from the far end of the largest reserved extent."""
        start = self._reserved.largest()
        length = self._reserved.remove(start)
        got = min(n, length)
        self._reserved.add(start, length - got)
        first = start + length - got
        self._used[first : first + got] = b"\1" * got
        return PageRange(first, got)
