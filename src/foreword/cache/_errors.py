"""What the cache raises."""

from __future__ import annotations

from foreword._errors import ForewordError


class OutOfPages(ForewordError):  # noqa: N818 - a state of the pool, not only an error
    """The pool cannot hold what was asked for, even after evicting all that nobody pins.

    Raised before anything is changed: the tree and its pages are exactly as they were. A caller
    that has other requests running may wait for one to finish and ask again.

    Attributes:
        needed: pages the call had to allocate.
        free: pages that were free.
        evictable: further pages that eviction could have freed for this call.
    """

    def __init__(self, needed: int, free: int, evictable: int = 0) -> None:
        self.needed = needed
        self.free = free
        self.evictable = evictable
        super().__init__(
            f"out of KV pages: {needed} needed, {free} free and {evictable} evictable. "
            "Give the engine more KV memory (kv_memory), shorten the prompt, "
            "or wait for running requests to finish."
        )

    def __reduce__(self) -> tuple[type[OutOfPages], tuple[int, int, int]]:
        return type(self), (self.needed, self.free, self.evictable)


class InvariantError(ForewordError, AssertionError):
    """An invariant of the prefix tree is broken: a defect in the cache, never a user's mistake."""
