"""How much memory the running requests will still take, were nobody else admitted."""

from __future__ import annotations

from bisect import bisect_left, insort


class Growth:
    """Running requests by the step at which each is expected to end.

    Each one writes a token per step until then and gives its memory back. What they hold now is the
    cache's to tell; this adds up what is to come.
    """

    def __init__(self) -> None:
        self._ends: list[tuple[int, int, int]] = []  # end, id, tokens given back then
        self._by_id: dict[int, tuple[int, int, int]] = {}

    def add(self, id: int, end: int, held: int) -> None:
        """A request that ends at step `end` with `held` tokens of its own. O(running)."""
        entry = (end, id, held)
        self._by_id[id] = entry
        insort(self._ends, entry)

    def remove(self, id: int) -> None:
        """O(running)."""
        entry = self._by_id.pop(id)
        del self._ends[bisect_left(self._ends, entry)]

    def peak(self, now: int, end: int) -> int:
        """Tokens by which memory in use will grow at most until `end`, with one request more.

        What comes after that is not the new one's doing. O(running).

        Args:
            now: the present step.
            end: when the one to be admitted is expected to end; its prompt is not counted.
        """
        alive = len(self._ends) + 1
        grown = most = 0
        before = now
        for finish, _, held in self._ends:
            if finish >= end:
                break
            if finish > before:
                grown += (finish - before) * alive
                most = max(most, grown)
                before = finish
            alive -= 1
            grown -= held
        return max(most, grown + (end - before) * alive)
